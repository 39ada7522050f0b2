"""Which column is what: named by the user, or recognised by the names people use; and the task that follows.

Names are compared without regard to case. Where a choice is open it goes by the order of the tables below and is told
in `Columns.how`; where nothing fits, the error lists the columns there are and the setting that names one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from lora.config import DataConfig
from lora.data.kinds import task_of_labels
from lora.errors import DataError

Row = dict[str, Any]

TEXT = (
    "text", "sentence", "content", "review", "message", "utterance", "comment", "tweet", "document", "query",
    "question", "body",
)  # fmt: skip
PLAIN_TEXT = ("text", "content", "document")  # a lone column of this name is text to model, whatever stands beside it
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"),
    ("text_1", "text_2"), ("text_a", "text_b"), ("question1", "question2"), ("text", "text_pair"),
    ("question", "sentence"), ("query", "passage"),
)  # fmt: skip
LABEL = (
    "label", "labels", "intent", "category", "class", "sentiment", "emotion", "emotions", "topic", "target", "score",
    "rating", "stars",
)  # fmt: skip
PROMPTS = (
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("question", "answer"), ("source", "target"), ("input", "output"), ("input", "target"),
)  # fmt: skip
WITH_CONTEXT = ("instruction", "prompt", "question")  # prompts that a context column may belong to
CONTEXT = ("input", "context")  # joined below the prompt where the prompt is an instruction
CHAT = ("messages", "conversations", "conversation")
CLASSIFYING = ("classification", "multi-label", "regression")


@dataclass(frozen=True)
class Columns:
    """The task and the columns it reads. Columns that the task does not use are None.

    Attributes:
        task: classification, multi-label, regression or causal.
        text, text_pair, label: of the classifying tasks; ``text`` alone for a causal task on plain text.
        prompt, completion, context: of a causal task on answers; ``context`` (alpaca's ``input``) goes below the
        prompt.
        how: one sentence for the log: what was chosen, why, and what was left unused.
    """

    task: str
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    completion: str | None = None
    context: str | None = None
    how: str = ""


class _Names:
    """The columns there are, found without regard to case; an exact spelling wins."""

    def __init__(self, rows: list[Row]) -> None:
        self.all = list(dict.fromkeys(str(key) for row in rows for key in row))
        self._lower = {name.lower(): name for name in reversed(self.all)}
        # A column of that name with strings in it is a text or an identifier, no list of turns.
        chats = [name for name in self.every(CHAT) if any(isinstance(row.get(name), list) for row in rows)]
        self.chat = chats[0] if chats else None

    def get(self, *aliases: str) -> str | None:
        return next((found for found in self.every(aliases)), None)

    def every(self, aliases: tuple[str, ...]) -> list[str]:
        found = [alias if alias in self.all else self._lower.get(alias.lower()) for alias in aliases]
        return [name for name in found if name is not None]

    def pair(self, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
        for first, second in pairs:
            one, two = self.get(first), self.get(second)
            if one and two:
                return one, two
        return None

    def error(self, message: str) -> DataError:
        """To raise: ``message``, and the columns there are."""
        return DataError(f"{message}\ncolumns there are: {', '.join(self.all)}")


def recognise(rows: list[Row], config: DataConfig) -> Columns:
    """Columns and task of ``rows``: what ``config`` names, else what the names and values say.

    Raises DataError: a named column is not there, nothing is recognisable, chat or preference data (not supported
    yet), or settings that contradict each other.
    """
    if not rows:
        raise DataError("there are no rows")
    names = _Names(rows)
    named = _named(config, names)
    task = config.task
    if task == "causal" or (task == "auto" and (named.get("prompt") or named.get("completion"))):
        return _causal(names, named)
    if task in CLASSIFYING or named.get("label"):
        return _classifying(rows, names, named, None if task == "auto" else task)
    if named.get("text_pair"):
        return _classifying(rows, names, named, None)
    if named.get("text"):
        label = names.get(*[name for name in LABEL if name != named["text"].lower()])
        return _classifying(rows, names, named, None) if label else _causal(names, named)
    # {question, answer, label} classifies: a column called just that beside a text is a stronger sign than two names.
    labelled = names.get("label", "labels") and (names.get(*TEXT) or names.pair(PAIRS))
    if names.pair(PROMPTS) and not labelled:
        return _causal(names, named)
    if names.get(*LABEL) and (names.get(*TEXT) or names.pair(PAIRS)):
        return _classifying(rows, names, named, None)
    if names.chat is None and names.get("chosen") and names.get("rejected"):
        raise names.error(
            "preference data (chosen, rejected) is not supported yet in this version; train on the chosen answers "
            "with data.prompt_column and data.completion_column"
        )
    return _causal(names, named, lone=True)


def _named(config: DataConfig, names: _Names) -> dict[str, str]:
    """The columns that the configuration names, as the data spells them; all missing ones are reported at once."""
    found: dict[str, str] = {}
    missing = []
    for role in ("text", "text_pair", "label", "prompt", "completion"):
        wanted = getattr(config, f"{role}_column")
        if wanted is None:
            continue
        name = names.get(wanted)
        if name is not None:
            found[role] = name
            continue
        near = difflib.get_close_matches(wanted, names.all, n=1, cutoff=0.5)
        missing.append(
            f"data.{role}_column: there is no column {wanted!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if missing:
        raise DataError("\n".join([*missing, f"columns there are: {', '.join(names.all)}"]))
    if config.task == "auto" and found.get("label") and (found.get("prompt") or found.get("completion")):
        raise DataError(
            "data.label_column is for classification and regression, data.prompt_column and data.completion_column are "
            "for answers; remove one kind or set data.task"
        )
    return found


def _causal(names: _Names, named: dict[str, str], lone: bool = False) -> Columns:
    """Columns of a causal task. ``lone``: nothing asked for it, it is what is left; then only a clear case will do."""
    plain = "plain text, every token learned"
    if named.get("text") and not (named.get("prompt") or named.get("completion")):
        return _told(names, Columns("causal", text=named["text"]), plain, [])
    prompt, completion = _prompt_and_completion(names, named)
    if prompt and completion:
        context = None
        if prompt.lower() in WITH_CONTEXT and "prompt" not in named:
            context = names.get(*[name for name in CONTEXT if name not in (prompt.lower(), completion.lower())])
        pairs = [names.pair((pair,)) for pair in PROMPTS]
        others = [f"{pair[0]!r} and {pair[1]!r}" for pair in pairs if pair and not {prompt, completion} & set(pair)]
        columns = Columns("causal", prompt=prompt, completion=completion, context=context)
        return _told(names, columns, "only the completion is learned", others)
    if prompt or completion:
        missing, role = ("completion", "prompt") if prompt else ("prompt", "completion")
        raise names.error(
            f"{role} is column {prompt or completion!r}, but no {missing} column is recognised; "
            f"name it with data.{missing}_column (--data.{missing}-column)"
        )
    if names.chat:
        raise names.error(
            f"column {names.chat!r} holds chat data, which is not supported yet in this version; flatten it to two "
            "columns, prompt and completion (one row for each answer), or name columns with data.prompt_column and "
            "data.completion_column"
        )
    text = names.get(*TEXT)
    if text and (not lone or text.lower() in PLAIN_TEXT or len(names.all) == 1):
        return _told(names, Columns("causal", text=text), plain, [])
    raise _nothing(names, text)


def _prompt_and_completion(names: _Names, named: dict[str, str]) -> tuple[str | None, str | None]:
    """The named columns; to one of them the other that is usual; or a usual pair."""
    prompt, completion = named.get("prompt"), named.get("completion")
    if prompt and not completion:
        usual = [second for first, second in PROMPTS if first == prompt.lower()] + [second for _, second in PROMPTS]
        completion = names.get(*[name for name in usual if name != prompt.lower()])
    elif completion and not prompt:
        usual = [first for first, second in PROMPTS if second == completion.lower()] + [first for first, _ in PROMPTS]
        prompt = names.get(*[name for name in usual if name != completion.lower()])
    elif not prompt:
        return names.pair(PROMPTS) or (None, None)
    return prompt, completion


def _nothing(names: _Names, text: str | None) -> DataError:
    if names.get("tokens") and names.get("tags"):
        return names.error("labels for single tokens (tokens, tags) are not supported yet in this version")
    what = "no column is recognised"
    if text:
        what = f"text is column {text!r}, but none of the others is recognised as its label"
    return names.error(
        f"{what}; name them: data.text_column (--data.text-column) and data.label_column (--data.label-column) to "
        "classify, data.prompt_column and data.completion_column to learn answers, or data.task causal for plain text"
    )


def _classifying(rows: list[Row], names: _Names, named: dict[str, str], task: str | None) -> Columns:
    labels = names.every(LABEL)
    text, pair, label = named.get("text"), named.get("text_pair"), named.get("label")
    others: list[str] = []
    if label is None:
        labels = [name for name in labels if name not in (text, pair)]
        label, others = (labels[0], [repr(name) for name in labels[1:]]) if labels else (None, [])
    if text is None:
        free = tuple(both for both in PAIRS if label is None or label.lower() not in both)
        found = names.pair(free) if pair is None else None
        texts = [name for name in names.every(TEXT) if name not in (label, pair)]
        text, pair = found or (texts[0] if texts else None, pair)
        others += [repr(name) for name in texts if name not in (text, pair)]
    missing = [role for role, name in (("text", text), ("label", label)) if name is None]
    if missing:
        settings = " and ".join(f"data.{role}_column (--data.{role}-column)" for role in missing)
        raise names.error(f"no {' and no '.join(missing)} column is recognised; name it with {settings}")
    assert label is not None
    inferred, why = task_of_labels([row.get(label) for row in rows])
    task, why = (task, "as data.task says") if task else (inferred, why)
    if task is None:
        raise DataError(
            f"column {label!r} holds {why}: is it an answer to be written? Then name data.prompt_column and "
            "data.completion_column; if these are classes, set data.task classification"
        )
    columns = Columns(task, text=text, text_pair=pair, label=label)
    return _told(names, columns, why, others)


def _told(names: _Names, columns: Columns, why: str, others: list[str]) -> Columns:
    """``columns`` with its sentence for the log."""
    roles = {
        role.replace("_", " "): getattr(columns, role)
        for role in ("text", "text_pair", "prompt", "context", "completion", "label")
        if getattr(columns, role)
    }
    used = ", ".join(f"{role} from column {name!r}" for role, name in roles.items())
    chosen = f" Preferred over {', '.join(others)}." if others else ""
    unused = [name for name in names.all if name not in roles.values()]
    left = f" Not used: {', '.join(unused[:12])}{' …' if len(unused) > 12 else ''}." if unused else ""
    how = f"Task {columns.task}: {used} ({why}).{chosen}{left}"
    return Columns(**{**columns.__dict__, "how": how})
