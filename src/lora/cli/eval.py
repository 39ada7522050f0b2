"""``lora eval``: measure an adapter beside its base model."""

from __future__ import annotations

import json
from typing import Any

import click

from lora.cli.benchmarks import harness_options, refuse_without_benchmark, run_benchmarks
from lora.cli.options import config_options, listed
from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS, RESAMPLES, SPEED_SECONDS
from lora.io.places import file_to_write


class Prompts(click.ParamType):
    """A number of prompts, or ``all``."""

    name = "prompts"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return True
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither a whole number of at least 1 nor 'all'", param, ctx)
        return int(value)


@click.command()
@click.argument("adapters", nargs=-1, metavar="ADAPTER...")
@click.option("--model", "-m", metavar="BASE", help="the base model (default: the one the adapter names)")
@click.option("--batch-size", type=click.IntRange(min=1), default=EVAL_BATCH_SIZE, show_default=True)
@click.option(
    "--baseline/--no-baseline", default=True, show_default=True, help="measure the base model in the same pass"
)
@click.option("--latency/--no-latency", default=True, show_default=True, help="time single rows and throughput")
@click.option("--speed", is_flag=True, help="time batch sizes and lengths, merged and unmerged, and writing")
@click.option(
    "--speed-seconds", type=click.FloatRange(min=0, min_open=True), default=SPEED_SECONDS, show_default=True,
    metavar="SECONDS", help="how long --speed may take",
)  # fmt: skip
@click.option(
    "--generate", type=Prompts(), metavar="N|all", help="let base and adapter answer so many prompts, and score that"
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=MAX_NEW_TOKENS,
    show_default=True,
    help="longest answer of --generate",
)
@click.option("--probe", metavar="FILE", help="measure what was forgotten, on general text of this file; or 'built-in'")
@click.option(
    "--resamples",
    type=click.IntRange(min=0),
    default=RESAMPLES,
    show_default=True,
    help="of the rows, for intervals and tests; 0 leaves them out",
)
@click.option("--slices", metavar="COLUMN,...", help="part the rows by these columns too, beside labels and length")
@click.option(
    "--robustness", metavar="NOISE,...|some", help="measure the rows with noise in their texts too: typos, case, ..."
)
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
@click.option("--output", "-o", metavar="FILE", help="also write everything as JSON here")
@click.option("--overwrite", is_flag=True, help="replace the file that --output names")
@click.option("--trust-remote-code", is_flag=True, help="let the base model's repository run its own code")
@click.option("--allow-other-base", is_flag=True, help="use the adapter on a base it was not trained on")
@harness_options
@config_options("data")
def command(
    adapters: tuple[str, ...], model: str | None, batch_size: int, baseline: bool, latency: bool, speed: bool,
    speed_seconds: float, generate: int | None, max_new_tokens: int, probe: str | None, resamples: int,
    slices: str | None, robustness: str | None, as_json: bool,
    output: str | None, overwrite: bool, trust_remote_code: bool, allow_other_base: bool, harness: dict[str, Any],
    overrides: dict[str, object],
) -> None:  # fmt: skip
    """Evaluate adapters (their folders, or those of runs) on labelled rows (--data FILE) or on benchmarks, all in one
    pass, each beside the base and the others.

    \b
    lora eval run --data test.jsonl
    lora eval run other-run --data test.jsonl
    lora eval run --data test.jsonl --generate 100
    lora eval run --data test.jsonl --slices source --robustness typos,case
    lora eval run other-run --harness arc_easy,gsm8k --limit 100
    """
    if harness["tasks"]:
        loading = {"trust_remote_code": trust_remote_code, "allow_other_base": allow_other_base}
        run_benchmarks(
            adapters, model, harness, loading, baseline=baseline, batch_size=batch_size, as_json=as_json,
            output=output, overwrite=overwrite,
            unused=(
                ("--data", overrides), ("--generate", generate), ("--speed", speed), ("--slices", slices),
                ("--robustness", robustness),
            ),
        )  # fmt: skip
        return
    refuse_without_benchmark(harness)
    from lora.cli import quiet_libraries
    from lora.errors import ConfigError
    from lora.overrides import load_config

    config = load_config(None, overrides).data
    if not config.train:
        raise ConfigError("--data: name the file, folder or hub id with the rows to evaluate on")
    if not isinstance(config.train, str):
        raise ConfigError("--data: rows of one source are evaluated on at a time; name one of them")
    file = file_to_write(output, "--output", overwrite, reads=config.train) if output else None
    quiet_libraries()
    from lora.cli.show import say, show_evaluation
    from lora.evaluation.evaluate import evaluate
    from lora.evaluation.speed_plan import SpeedPlan
    from lora.io.atomic import write_text
    from lora.workflow import choose, load_alike

    chosen = choose(adapters, harness["named"], model)
    places = chosen.adapters
    if not places:
        raise ConfigError("name an adapter's or a run's folder to evaluate")
    if len(places) == 1 and not harness["named"]:
        places = {"tuned": next(iter(places.values()))}
    tuned, tokenizer, task = load_alike(
        places, chosen.model, trust_remote_code=trust_remote_code, allow_other_base=allow_other_base
    )
    evaluation = evaluate(
        tuned, config.train, tokenizer=tokenizer, task=task, adapters=list(places), baseline=baseline or chosen.base,
        batch_size=batch_size, max_length=config.max_length, latency=latency, data_config=config,
        generate=generate or False, max_new_tokens=max_new_tokens,
        speed=SpeedPlan(seconds=speed_seconds) if speed else False,
        probe=probe == "built-in" or probe or False, resamples=resamples, slices=listed(slices),
        robustness=listed(robustness),
    )  # fmt: skip
    for note in evaluation.notes:
        say(note)
    text = json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    if file:
        write_text(file, text + "\n")
    if as_json:
        print(text)
    else:
        show_evaluation(evaluation)
