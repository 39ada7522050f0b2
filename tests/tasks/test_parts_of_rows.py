"""Every task gives the same of parts of its rows, kept on the disk or not, as of all of them at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest

from chat_tokenizer import byte_tokenizer
from lora.config import DataConfig
from lora.data import stored, streams, tables
from lora.data.streams import RowStream
from lora.errors import DataError
from lora.io.cache import Cache
from lora.tasks import Encoded, Task, encoding, from_state
from lora.tasks.base import NoneLeft
from lora.tasks.cache_key import key_of, rows_sha256
from lora.tasks.encoding import encode
from lora.training.prepare import digest, read_rows
from small_base import stories, tagged, tokenizer

LINES = (  # a template that ends answers with nothing: the tokenizer's end is put there, which is seen in the rows
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is kept, in small pieces."""
    for module, name, value in (
        (encoding, "FEWEST", 1), (streams, "CHUNK", 3), (streams, "SAMPLE", 9), (stored, "BATCH", 4),
        (tables, "BATCH", 4),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def talks() -> list[dict[str, Any]]:
    """Of one to four exchanges; some have an answer that fits nowhere, three in a row nothing else."""
    rows = []
    for i in range(20):
        turns = [
            turn for n in range(1 + i % 4) for turn in (f"ask {i} {n}", f"answer {n}" + " long" * 30 * (i % 5 == n))
        ]
        if i in (6, 7, 8):
            turns = [f"ask {i}", "long " * 40]
        roles = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(turns)]
        rows.append({"messages": roles, "system": "Be kind." if i % 2 else None})
    return rows


def preferred(messages: bool = False) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i in range(20):
        prompt: Any = f"ask {i} " * (1 + i % 6)
        if messages:
            prompt = [{"role": "user", "content": prompt}]
        rows.append({"prompt": prompt, "chosen": "yes " * (1 + 40 * (i in (6, 7, 8))), "rejected": f"no {i}"})
    return rows


def words() -> list[dict[str, Any]]:
    """Sentences of which some are long, some hold a word that gives no token, and some a tag that breaks the scheme."""
    rows = tagged(20)
    for i in (2, 3, 11, 12, 13, 14, 15, 16):
        rows[i] = {"tokens": ["\t", *rows[i]["tokens"]], "tags": ["I-sky", *rows[i]["tags"]]}
    return rows


def told() -> list[dict[str, Any]]:
    rows = stories(20)
    for i in (1, 2, 12):
        rows[i]["prompt"] += " red" * 20
    for i in (6, 7, 8):
        rows[i]["completion"] += " cat" * 20
    return rows


class Case(NamedTuple):
    rows: list[dict[str, Any]]
    length: int
    tokenizer: Callable[[], Any]
    settings: dict[str, Any]


CHATML = {"options": {"template": "chatml"}}
CASES = {
    "chat": Case(talks(), 120, byte_tokenizer, CHATML),
    "chat without ends": Case(talks(), 120, byte_tokenizer, {"options": {"template": LINES}}),
    "preference": Case(preferred(), 50, byte_tokenizer, {"task": "preference"}),
    "preference of messages": Case(preferred(True), 120, byte_tokenizer, {"task": "preference", **CHATML}),
    "reward": Case(preferred(), 50, byte_tokenizer, {"task": "reward"}),
    "seq2seq": Case(told(), 12, lambda: tokenizer("t5"), {"task": "seq2seq", "options": {"prefix": "big "}}),
    "prompts": Case(told(), 12, lambda: tokenizer("llama"), {"task": "causal"}),
    "tags": Case(words(), 6, lambda: tokenizer("bert"), {}),
}  # fmt: skip


def settled(case: Case) -> Task:
    """The task as `prepare` has it."""
    return read_rows(case.rows, False, DataConfig(**case.settings), 0).task.with_tokenizer(case.tokenizer())


def alike(one: Encoded, other: Encoded, notes: list[str]) -> None:
    for name in ("examples", "lengths", "supervised", "answers", "ends", "shares"):
        assert list(getattr(one, name)) == list(getattr(other, name)), name
    assert (one.truncated, one.rows, digest(one)) == (other.truncated, other.rows, digest(other))
    # Which note comes first depends on the part in which it is met first.
    assert sorted(one.notes) == sorted([*other.notes, *notes])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shares", [(), ((7, 1.0), (13, 0.5))])
def test_parts_give_what_the_whole_gives(name: str, shares: Any, tmp_path: Path) -> None:
    case = CASES[name]
    tok, cache = case.tokenizer(), Cache(tmp_path)
    whole = settled(case).encode(case.rows, tok, case.length)
    assert whole.truncated and whole.notes and (whole.rows == 20) == (name == "tags"), "the case is one of long rows"
    task = settled(case)
    made = encode(task, case.rows, tok, case.length, shares, cache)
    whole.shares = list(made.shares)
    assert isinstance(made.examples, stored.StoredExamples) and bool(shares) == bool(made.shares)
    alike(made, whole, [])
    again = settled(case)
    alike(encode(again, case.rows, tok, case.length, shares, cache), whole,
          [f"Token ids were read from {cache.entries()[0].path}."])  # fmt: skip
    assert again.ends() == task.ends() and len(cache.entries()) == 1
    if name == "chat without ends":
        assert again.ends() == [tok.eos_token_id] and settled(case).ends() == []
    alike(encode(settled(case), case.rows, tok, case.length, shares), whole, [])
    stream = RowStream(lambda: iter(case.rows))
    alike(encode(settled(case), stream, tok, case.length, shares), whole, [])


@pytest.mark.parametrize("name", [name for name in CASES if name != "tags"])
def test_nothing_is_left(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    rows, tok = case.rows[6:9] * 2, case.tokenizer()
    refusals = []
    for cache in (None, Cache(tmp_path)):
        for shares in ((), ((3, 1.0), (3, 2.0))):
            with pytest.raises(NoneLeft, match="None is left; raise data.max_length") as caught:
                encode(settled(case), rows, tok, case.length, shares, cache)
            refusals.append((str(caught.value), caught.value.notes, caught.value.truncated))
    assert all(refusal == refusals[0] for refusal in refusals) and not Cache(tmp_path).entries()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "iterable"])
def test_streamed_is_as_held(name: str, kind: str, tmp_path: Path) -> None:
    case = CASES[name]
    data: Any = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        data.write_text("".join(json.dumps(row) + "\n" for row in case.rows))
    elif kind == "parquet":
        datasets.Dataset.from_list(case.rows).to_parquet(str(data))
    else:
        data = datasets.Dataset.from_list(case.rows).to_iterable_dataset()
    one, other = (read_rows(data, None, DataConfig(streaming=yes, **case.settings), 0) for yes in (True, False))
    assert one.streamed and not other.streamed
    assert one.task.state() == other.task.state() and one.notes == other.notes
    assert list(one.train) == other.train and list(one.held or []) == other.held
    tok = case.tokenizer()
    found, expected = (
        encode(of.task.with_tokenizer(tok), of.train, tok, case.length, cache=None) for of in (one, other)
    )
    alike(found, expected, [])


def test_what_is_at_fault_is_named_by_its_row() -> None:
    rows = [*preferred()[:7], {"prompt": "ask", "chosen": "yes", "rejected": "yes"}]
    task = settled(CASES["preference"])
    with pytest.raises(DataError, match="row 8"):
        encode(task, RowStream(lambda: iter(rows)), byte_tokenizer(), 50)


def test_numbers_as_tags_keep_their_kind() -> None:
    """Their names are known when all have been seen."""
    kind = type(settled(CASES["tags"]))
    columns = {"tokens": "tokens", "tags": "tags"}
    for tags in (
        [0, 1, 2],
        [0, 1.0, 2],
        [0, "B-x", 2],
        ["1", 2, 3],
        ["O", "B-x", "I-x"],
        [True, False, True],
        [1, True],
    ):
        rows = [{"tokens": ["cat"] * (n + 1), "tags": [*tags, *tags][: n + 1]} for n in range(len(tags))]
        one, other = kind.from_rows(rows, columns), kind.from_chunks(([row] for row in rows), columns)
        assert one.state() == other.state() and one.remarks() == other.remarks()
    assert one.state()["labels"] == ["1", "True"]


def test_the_key_tells_formats_and_options_apart() -> None:
    case, tok = CASES["chat"], byte_tokenizer()

    def key(task: Task) -> str:
        return key_of(task, rows_sha256(case.rows), tok, 100)[0]

    def chat(**options: Any) -> Task:
        return read_rows(case.rows, False, DataConfig(options={"template": "chatml", **options}), 0).task

    settings: list[dict[str, Any]] = [
        {}, {"template": "plain"}, {"template": LINES}, {"learn": "last"}, {"system_prompt": "Be brief."},
        {"template_options": {"a": 1}},
    ]  # fmt: skip
    assert len({key(chat(**each)) for each in settings}) == len(settings)
    task = chat().with_tokenizer(tok)
    kept = from_state(json.loads(json.dumps(task.state())))
    assert key(task) == key(kept), "of an adapter as before it was trained"
    task.encode(case.rows, tok, 100)
    assert key(task) == key(kept), "and whatever was met among other rows"


def test_a_template_in_a_file_counts_by_its_text(tmp_path: Path) -> None:
    case, tok, file = CASES["chat"], byte_tokenizer(), tmp_path / "mine.jinja"
    task = read_rows(case.rows, False, DataConfig(options={"template": str(file)}), 0).task
    keys = set()
    for text in (LINES, LINES.replace(": ", " - ")):
        file.write_text(text)
        keys.add(key_of(task, rows_sha256(case.rows), tok, 100)[0])
    assert len(keys) == 2
