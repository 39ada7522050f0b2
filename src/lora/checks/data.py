"""All that a look at data before training finds: examples as the model gets them, figures, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lora.checks.answers import Answers, look_at_answers, several_answers
from lora.checks.characters import look_at_characters, scripts
from lora.checks.duplicates import Duplicates, look_for_duplicates
from lora.checks.examples import Choice, Example, Viewer, choose, ids_of, special_ids
from lora.checks.lengths import Lengths, look_at_lengths
from lora.checks.remarks import Level, Part, Remark, counted, found, share
from lora.checks.texts import columns_of, read
from lora.config import NEARLY_THE_SAME, TrainingConfig
from lora.data.batches import BatchPlan
from lora.tasks import Task

UNKNOWN = 0.005  # a share of unknown tokens that is more than a rare sign
LEVELS: tuple[Level, ...] = ("mend", "look", "note")


@dataclass
class DataReport:
    """What there is to say of data.

    Attributes:
        model: base whose tokenizer was used.
        sources: files and hub ids.
        task, columns: what was recognised, or named.
        rows: of each split: training, held-out, test.
        notes: what training would say of the data.
        scripts: of the letters in training, by their share.
        unknown: share of training's tokens that stand for what the tokenizer does not know; None: it knows all.
        findings: the worst first.
        examples: those that were asked for.
    """

    model: str
    sources: list[str]
    task: str
    columns: dict[str, str]
    rows: dict[str, int]
    notes: list[str]
    lengths: Lengths
    answers: Answers
    duplicates: Duplicates
    scripts: dict[str, float]
    unknown: float | None
    findings: list[Remark]
    examples: list[Example] = field(default_factory=list)

    def at(self, level: Level) -> list[Remark]:
        return [finding for finding in self.findings if finding.level == level]

    @property
    def verdict(self) -> str:
        """One sentence."""
        mend, look = len(self.at("mend")), len(self.at("look"))
        also = f"; {counted(look, 'thing')} to look at" if look else ""
        if mend:
            return f"{counted(mend, 'thing')} must be mended before training is worth its price{also}."
        return f"Nothing must be mended{also}."

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {"verdict": self.verdict, **asdict(self)}

    def to_text(self, width: int = 100, full: bool = False) -> str:
        """Everything, to be read, without colours. ``full``: no example is shortened."""
        import io

        from rich.console import Console

        from lora.checks.drawing import draw

        console = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
        draw(self, console, full)
        return str(console.file.getvalue())  # type: ignore[attr-defined]


def look(
    parts: Sequence[Part], task: Task, tokenizer: Any, max_length: int, pad_token_id: int, training: TrainingConfig,
    *, model: str = "", sources: Sequence[str] = (), notes: Sequence[str] = (), near: float = NEARLY_THE_SAME,
    choice: Choice | None = None,
) -> DataReport:  # fmt: skip
    """Look at encoded ``parts``, the first of which is training.

    Args:
        max_length, pad_token_id: with which they were encoded and will be padded.
        near: Jaccard index from which on two inputs are told as nearly the same.
        choice: examples to show; None: a few of different lengths.

    Raises:
        ConfigError: ``choice`` names a row that is not there.
    """
    picked = choose(choice or Choice(), parts)
    said = [[read(task, row) for row in part.rows] for part in parts]
    train = parts[0]
    lengths, findings = look_at_lengths(train, task, tokenizer, max_length, pad_token_id, training)
    duplicates, more = look_for_duplicates(parts, said, near, several_answers(task.learns))
    findings += more
    answers, more = look_at_answers(parts, said, task)
    findings += more
    specials = special_ids(tokenizer)
    rows, texts = [row for part in parts for row in part.rows], [row.texts for of_part in said for row in of_part]
    findings += look_at_characters(
        rows, texts, [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(specials))]
    )
    unknown, more = _unknown(train, task, tokenizer)
    findings += more
    widths = None
    if lengths.padded and task.rows == 1:
        plan = BatchPlan(
            train.encoded.lengths, training.batch_size, training.seed, training.length_grouped, train.encoded.shares
        )
        widths = {
            place: max(train.encoded.lengths[i] for i in batch) for batch in plan.epoch(0) for place in batch
        }  # fmt: skip
    viewer = Viewer(task, tokenizer, widths)
    return DataReport(
        model, list(sources), task.name, columns_of(task), {part.name: len(part.rows) for part in parts}, list(notes),
        lengths, answers, duplicates, scripts(text for row in said[0] for text in row.texts), unknown,
        sorted(findings, key=lambda finding: LEVELS.index(finding.level)), [viewer.view(*one) for one in picked],
    )  # fmt: skip


def _unknown(part: Part, task: Task, tokenizer: Any) -> tuple[float | None, list[Remark]]:
    """The share of unknown tokens, and where they are."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return None, []
    counts: dict[int, int] = {}
    total = 0
    for place, example in enumerate(part.encoded.examples):
        ids = ids_of(task, example)
        total += len(ids)
        if here := ids.count(unknown):
            row = example.get("row", place)
            counts[row] = counts.get(row, 0) + here
    number = sum(counts.values())
    if not number:
        return 0.0, []
    rows = sorted(counts)
    what = (
        f"{counted(number, 'token')} ({share(number, total)}) that the tokenizer does not know, in "
        f"{counted(len(rows), 'row')}"
    )
    why = f"all of them look the same to the model: {tokenizer.unk_token}; signs or a script that this base lacks"
    return number / total, [
        found("unknown", "look" if number > UNKNOWN * total else "note", what, why, part.rows, rows)
    ]
