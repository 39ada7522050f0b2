"""``lora report``: the page of a run, an evaluation or a comparison, made again from its JSON.

Not called report.py: as a module of the package it would take the place of `lora.cli.report`, the function.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="where the page goes (default: report.html beside report.json); a name in .md: Markdown",
)
@click.option("--overwrite", is_flag=True, help="replace the file that --output names")
def command(run: str, output: str | None, overwrite: bool) -> None:
    """Write the report of RUN (a run's folder, its report.json, or what `lora eval --output` wrote) as a page.

    RUN may be the folder of a comparison too, whose page is made from its compare.json.

    The page is one file that loads nothing. Numbers stay those of the JSON: nothing is measured again.

    \b
    lora report runs/mine
    lora report runs/mine --output page.html
    lora report runs/compared
    """
    from lora.errors import ConfigError
    from lora.evaluation.saved import page_of, read_report
    from lora.io.atomic import write_text
    from lora.io.places import file_to_write

    source, report = read_report(run)
    if output and Path(output).suffix.lower() == ".json":
        raise ConfigError(f"--output: {output} would be JSON, which {source} is; end it in .html, or .md for Markdown")
    # The page beside report.json is made from it alone, so making it anew loses nothing.
    page = file_to_write(output, "--output", overwrite, reads=source) if output else page_of(source)
    if "candidates" in report:
        from lora.comparison.page import as_file
    else:
        from lora.evaluation.report import as_file
    write_text(page, as_file(report, page, source.name))
    print(page)
