"""What is to be learned: how often each label comes, what preferences prefer, how conversations go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from lora.checks.lengths import Spread, spread
from lora.checks.remarks import Level, Part, Remark, counted, found, share
from lora.checks.texts import Said, plain
from lora.tasks import Row, Task

FEW = 10  # rows of a class: with fewer its share of a tenth held out is no row
NAMED = 6  # classes that a finding names
LEANING = 0.1  # beyond a half, share of pairs in which one answer is longer
SURE = 100  # pairs from which on such a share is no accident (its deviation is then below 0.05)

Kind = Literal["label", "labels", "number", "pairs", "written"]


@dataclass
class Answers:
    """What is to be learned.

    Attributes:
        kind: ``label`` or ``labels`` (several) of known ones, ``number``, ``pairs`` of answers, or ``written`` texts.
        classes: rows (or words) of each label, by split; the most frequent in training first.
        unlabelled: training rows without any of several labels.
        values: numbers, as they are spread.
        chosen, rejected: tokens of these answers.
        longer: share of pairs whose chosen answer has more tokens; ties count half.
        turns: messages of a conversation.
        roles: messages of each role.
        systems: how many different system messages there are.
    """

    kind: Kind
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    unlabelled: int = 0
    values: Spread | None = None
    chosen: Spread | None = None
    rejected: Spread | None = None
    longer: float | None = None
    turns: Spread | None = None
    roles: dict[str, int] = field(default_factory=dict)
    systems: int = 0


def several_answers(kind: Kind) -> Level:
    """How bad different answers to one input are."""
    levels: dict[Kind, Level] = {"label": "mend", "labels": "look", "number": "look"}
    return levels.get(kind, "note")


def look_at_answers(parts: Sequence[Part], said: Sequence[Sequence[Said]], task: Task) -> tuple[Answers, list[Remark]]:
    """What the rows of ``parts`` teach; the first is training, and ``said`` is what each row says."""
    out, findings = Answers(task.learns), list[Remark]()
    examples = parts[0].encoded.examples
    if out.kind in ("label", "labels"):
        findings += _labels(out, parts, task)
    elif out.kind == "number":
        out.values = spread([float(value) for value in task.targets(examples)], whole=False)
    elif out.kind == "pairs":
        findings += _pairs(out, parts[0], said[0], task)
    if any(row.messages for row in said[0]):
        findings += _conversations(out, parts[0].rows, said[0])
    return out, findings


def _labels(out: Answers, parts: Sequence[Part], task: Task) -> list[Remark]:
    counts: dict[str, Counter[str]] = {}
    for part in parts:
        targets = task.targets(part.encoded.examples)
        lists = [task.labels_in(target) for target in targets]
        counts[part.name] = Counter(str(name) for names in lists for name in names)
        if part is parts[0]:
            out.unlabelled = sum(not names for names in lists)
    train = counts[parts[0].name]
    names = [str(name) for name in task.labels]
    for name in sorted(names, key=lambda name: (-train[name], name)):
        out.classes[name] = {part: count[name] for part, count in counts.items()}
    findings, unit = [], "word" if task.per_token else "row"
    # What the task added itself, and no row has, is nobody's fault; the notes name it.
    asked = [name for name in out.classes if name not in task.added or any(count[name] for count in counts.values())]
    few = [name for name in asked if train[name] < FEW]
    if few:
        what = f"{counted(len(few), 'label')} with fewer than {FEW} training {unit}s: {_listed(few, train)}"
        findings.append(Remark("few", "look", what, "too few to learn from; collect more, or join labels"))
    for part in parts[1:]:
        missing = [name for name in asked if not counts[part.name][name]]
        if missing:
            what = f"{counted(len(missing), 'label')} without a {unit} in {part.name}: {_listed(missing, train)}"
            why = "metrics there say nothing of them"
            findings.append(Remark("missing", "look", what, why))
    top, total = next(iter(out.classes)), len(parts[0].encoded)
    if out.kind == "label" and train[top] > 0.8 * total:
        what = f"{share(train[top], total)} of the training rows have the label {top!r}"
        why = "to answer that always has this accuracy; look at macro F1"
        findings.append(Remark("one_sided", "look", what, why))
    return findings


def _listed(names: list[str], counts: Counter[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"{name} ({counts[name]})" for name in names[:NAMED]) + more


def _pairs(out: Answers, part: Part, said: Sequence[Said], task: Any) -> list[Remark]:
    both = [task.answer_lengths(example) for example in part.encoded.examples]
    out.chosen, out.rejected = spread([one for one, _ in both]), spread([other for _, other in both])
    longer = sum((one > other) + (one == other) / 2 for one, other in both) / len(both)
    out.longer = longer
    findings = []
    if abs(longer - 0.5) > LEANING and len(both) >= SURE:
        which = "longer" if longer > 0.5 else "shorter"
        what = f"the chosen answer is the {which} one in {share(max(longer, 1 - longer), 1)} of the pairs"
        why = f"what is learned may be to write {which} answers, whatever is in them"
        findings.append(Remark("length_bias", "look", what, why))
    same = [i for i, row in enumerate(said) if len(row.answers) == 2 and plain(row.answers[0]) == plain(row.answers[1])]
    if same:
        what = f"{counted(len(same), 'pair')} that differ in case or white space alone"
        findings.append(found("same", "look", what, "is that what is preferred?", part.rows, same))
    return findings


def _conversations(out: Answers, rows: Sequence[Row], said: Sequence[Said]) -> list[Remark]:
    talks = [(index, row.messages) for index, row in enumerate(said) if row.messages]
    out.turns = spread([len(messages) for _, messages in talks])
    out.roles = dict(Counter(message["role"] for _, messages in talks for message in messages).most_common())
    systems = {message["content"] for _, messages in talks for message in messages if message["role"] == "system"}
    out.systems = len(systems)
    findings = []

    def add(kind: str, level: Level, indices: list[int], what: str, why: str) -> None:
        if indices:
            of = f"{counted(len(indices), 'conversation')} ({share(len(indices), len(talks))}) {what}"
            findings.append(found(kind, level, of, why, rows, indices))

    if out.kind == "written" and out.roles.get("assistant"):
        open_ = [index for index, messages in talks if messages[-1]["role"] != "assistant"]
        add(
            "open_end", "look", open_, "do not end with the assistant", "what stands behind the last answer is not used"
        )
    with_system = [index for index, messages in talks if messages[0]["role"] == "system"]
    if 0 < len(with_system) < len(talks):
        without = [index for index, messages in talks if messages[0]["role"] != "system"]
        why = (
            "served with one, or without, the model is asked in a form that it saw in part; data.options system_prompt"
        )
        add("no_system", "look", without, "have no system message, the others have", why)
    twice = [
        index for index, messages in talks
        if any(a["role"] == b["role"] != "tool" for a, b in pairwise(messages))
    ]  # fmt: skip
    add("same_role", "look", twice, "have two messages of one role in a row", "templates may refuse or join them")
    return findings
