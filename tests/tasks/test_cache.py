"""Token ids that are kept: the same as made anew, never stale, never broken, never half written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from lora.data import stored, streams
from lora.data.stored import StoredExamples, Unstorable, Writer
from lora.io.cache import Cache
from lora.tasks import Task, cache_key, encoding
from lora.tasks.cache_key import key_of, rows_sha256
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.encoding import encode
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.regression import RegressionTask
from small_base import labelled, tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is kept, in small pieces."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # some tests fork
    for module, name, value in ((encoding, "FEWEST", 1), (streams, "CHUNK", 5), (stored, "BATCH", 4)):
        monkeypatch.setattr(module, name, value)


LABELLED = labelled(23)
PROMPTS = [{"prompt": row["text"], "completion": row["label"]} for row in LABELLED]
CASES: dict[str, tuple[str, Task, list[dict[str, Any]]]] = {
    "plain": ("llama", CausalTask(text="text"), LABELLED),
    "prompts": ("llama", CausalTask(prompt="prompt", completion="completion"), PROMPTS),
    "classes": ("bert", ClassificationTask(["bird", "cat", "dog"]), LABELLED),
    "pairs": ("bert", ClassificationTask(["bird", "cat", "dog"], text_pair="label"), LABELLED),
    "lists": ("bert", MultiLabelTask(["bird", "cat", "dog"]), [{**r, "label": [r["label"]] * (i % 2)}
                                                               for i, r in enumerate(LABELLED)]),
    "numbers": ("bert", RegressionTask(0.5, 2.0), [{**row, "label": i / 7} for i, row in enumerate(LABELLED)]),
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    return list(one.examples) == list(other.examples) and all(
        list(getattr(one, name)) == list(getattr(other, name)) for name in ("lengths", "supervised", "shares")
    ) and one.truncated == other.truncated  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shares", [(), ((10, 1.0), (13, 0.5))])
def test_what_is_kept_is_what_is_made(case: str, shares: Any, tmp_path: Path) -> None:
    kind, task, rows = CASES[case]
    cache = Cache(tmp_path)
    fresh = encode(task, rows, tokenizer(kind), 12, shares)
    made = encode(task, rows, tokenizer(kind), 12, shares, cache)
    assert isinstance(made.examples, StoredExamples) and same(made, fresh) and made.notes == fresh.notes
    assert len(cache.entries()) == 1
    again = encode(task, rows, tokenizer(kind), 12, shares, cache)
    assert same(again, fresh) and again.notes == [*fresh.notes, f"Token ids were read from {cache.entries()[0].path}."]
    assert fresh.truncated or case not in ("plain", "classes")
    from lora.training.prepare import digest

    assert digest(again) == digest(fresh) == digest(made)
    assert again.examples[-1] == fresh.examples[-1] and again.examples[3:9:2] == fresh.examples[3:9:2]
    with pytest.raises(IndexError):
        again.examples[len(fresh)]


def test_a_part_of_which_nothing_is_left(tmp_path: Path) -> None:
    long = [{"prompt": "cat", "completion": "dog " * 40}] * 10
    task = CausalTask(prompt="prompt", completion="completion")
    rows = [*long, *PROMPTS, *long]
    assert same(
        encode(task, rows, tokenizer("llama"), 16, (), Cache(tmp_path)), task.encode(rows, tokenizer("llama"), 16)
    )
    for cache in (None, Cache(tmp_path)):
        for shares in ((), ((5, 1.0), (5, 2.0))):
            with pytest.raises(encoding.NoneLeft, match="10 of 10 rows were longer than 16 .* None is left"):
                encode(task, long, tokenizer("llama"), 16, shares, cache)
    assert len(Cache(tmp_path).entries()) == 1


CELLS = st.one_of(st.integers(-(2**31), 2**31 - 1), st.floats(allow_nan=False), st.text(max_size=5), st.booleans())


@settings(max_examples=80, deadline=None)
@given(data=st.data(), keys=st.lists(st.sampled_from("abc"), unique=True), count=st.integers(1, 30))
def test_examples_come_back_or_are_refused(
    data: st.DataObject, keys: list[str], count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kinds = {key: data.draw(st.sampled_from([CELLS, st.lists(st.integers(0, 9)), st.lists(CELLS, max_size=3)]))
             for key in keys}  # fmt: skip
    examples = [
        {"input_ids": [number] * (number % 3), **{key: data.draw(kind) for key, kind in kinds.items()}}
        for number in range(count)
    ]
    folder = tmp_path_factory.mktemp("stored")
    writer = Writer(folder)
    try:
        writer.add(examples, [1] * count, [1] * count)
        writer.finish()
    except Unstorable:
        assert keys, "token ids alone can always be kept"
        return
    finally:
        writer.close()
    found = list(stored.read(folder)[0])
    checked = [i for i in range(count) if i % 4 < stored.CHECKED]
    assert [found[i] for i in checked] == [examples[i] for i in checked]


# -- never stale ----

ROWS = labelled(9)
TASK = ClassificationTask(["bird", "cat", "dog"])


def key(task: Task = TASK, rows: Any = ROWS, tok: Any = None, length: int = 12, sizes: Any = ()) -> str:
    return key_of(task, rows_sha256(rows), tok or tokenizer("bert"), length, sizes)[0]


def with_token() -> Any:
    changed = tokenizer("bert")
    changed.add_tokens(["novel"])
    return changed


def with_template() -> Any:
    changed = tokenizer("bert")
    changed.chat_template = "{{ messages }}"
    return changed


def with_method() -> Any:
    class Own(type(tokenizer("bert"))):
        pass

    changed = tokenizer("bert")
    changed.__class__ = Own
    return changed


CHANGES: dict[str, Callable[[], str]] = {
    "a letter": lambda: key(rows=[{**ROWS[0], "text": ROWS[0]["text"] + "s"}, *ROWS[1:]]),
    "white space": lambda: key(rows=[{**ROWS[0], "text": ROWS[0]["text"] + " "}, *ROWS[1:]]),
    "a label": lambda: key(rows=[*ROWS[:-1], {**ROWS[-1], "label": "cat"}]),
    "a label's type": lambda: key(rows=[{**row, "label": 1} for row in ROWS]),
    "the same label in words": lambda: key(rows=[{**row, "label": "1"} for row in ROWS]),
    "the order": lambda: key(rows=[ROWS[1], ROWS[0], *ROWS[2:]]),
    "a row less": lambda: key(rows=ROWS[:-1]),
    "a row twice": lambda: key(rows=[*ROWS, ROWS[0]]),
    "another column": lambda: key(rows=[{"body" if k == "text" else k: v for k, v in row.items()} for row in ROWS]),
    "labels": lambda: key(ClassificationTask(["bird", "cat", "dog", "fish"])),
    "order of labels": lambda: key(ClassificationTask(["cat", "bird", "dog"])),
    "the column that is read": lambda: key(ClassificationTask(["bird", "cat", "dog"], text="label")),
    "the task": lambda: key(MultiLabelTask(["bird", "cat", "dog"])),
    "the length": lambda: key(length=13),
    "the sources": lambda: key(sizes=(4, 5)),
    "the tokenizer": lambda: key(tok=tokenizer("llama")),
    "a token more": lambda: key(tok=with_token()),
    "the template": lambda: key(tok=with_template()),
    "the tokenizer's class": lambda: key(tok=with_method()),
}


def test_every_part_of_the_key_counts() -> None:
    found = {name: change() for name, change in CHANGES.items()}
    assert len({key(), *found.values()}) == 1 + len(found), found


def test_attributes_that_no_state_tells() -> None:
    odd = ClassificationTask(["bird", "cat", "dog"])
    odd.upper = True  # type: ignore[attr-defined]
    assert key(odd) != key()


def test_the_code_and_the_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    code = cache_key._package()
    assert all(name in code for name in (b"class CausalTask", b"class Frame", b"def check_texts", b"class Writer"))
    monkeypatch.setattr(cache_key, "_package", lambda: b"a line changed")
    changed = key()
    monkeypatch.setattr(cache_key.importlib.metadata, "version", lambda name: "99")
    assert len({before, changed, key()}) == 3

    class Mine(ClassificationTask):
        pass

    assert key(Mine(["bird", "cat", "dog"])) != key()


def test_the_key_is_the_same_where_nothing_differs() -> None:
    used = tokenizer("bert")
    used(["red sun", "cat"], padding=True, truncation=True, max_length=2)
    assert key(tok=used) == key() == key(rows=[dict(reversed(row.items())) for row in ROWS])
    script = (
        "from small_base import labelled, tokenizer\nfrom lora.tasks.cache_key import key_of, rows_sha256\n"
        "from lora.tasks.classification import ClassificationTask\n"
        "task = ClassificationTask(['bird', 'cat', 'dog'])\n"
        "print('KEY', key_of(task, rows_sha256(labelled(9)), tokenizer('bert'), 12)[0])"
    )
    import lora

    paths = [str(Path(lora.__file__).parents[1]), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.rpartition("KEY ")[2].strip() == key(), done.stderr


@pytest.mark.parametrize("cell", [object(), {1, 2}, 1j, np.array([object()], dtype=object)])
def test_what_has_no_exact_spelling_is_not_kept(cell: Any, tmp_path: Path) -> None:
    rows = [{**row, "more": cell} for row in LABELLED]
    found = encode(TASK, rows, tokenizer("bert"), 12, (), Cache(tmp_path))
    assert len(found) == 23 and "Token ids are not kept for another time" in found.notes[-1]
    assert Cache(tmp_path).entries() == []


def test_arrays_are_told_apart_beyond_what_they_print() -> None:
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    assert str(one) == str(other) and rows_sha256([{"x": one}]) != rows_sha256([{"x": other}])
    assert rows_sha256([{"x": b"a"}]) != rows_sha256([{"x": "a"}])


def test_a_tokenizer_of_ones_own_is_not_kept(tmp_path: Path) -> None:
    real = tokenizer("bert")

    class Callable_:
        truncation_side = "right"

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return real(*arguments, **options)

    found = encode(TASK, LABELLED, Callable_(), 12, (), Cache(tmp_path))
    assert "a tokenizer that does not save itself" in found.notes[-1] and not Cache(tmp_path).entries()


def test_a_tokenizer_changed_behind_its_files_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a key ever miss something: the first rows are tokenised anew and compared."""
    monkeypatch.setattr(encoding, "key_of", lambda *arguments: ("key", {}))
    encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path))
    swapped = [{**row, "text": row["text"][::-1]} for row in LABELLED]
    found = encode(TASK, swapped, tokenizer("bert"), 12, (), Cache(tmp_path))
    assert same(found, encode(TASK, swapped, tokenizer("bert"), 12))
    assert "were of no use (the first rows give other tokens now) and have been made anew" in found.notes[-1]


# -- never broken ----


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"a bit of {name}": (lambda folder, name=name: flip(folder / name))
       for name in ("examples.arrow", "lengths.npy", "supervised.npy")},
    **{f"no {name}": (lambda folder, name=name: (folder / name).unlink())
       for name in ("examples.arrow", "lengths.npy", "entry.json")},
    "half of it": lambda folder: os.truncate(folder / "examples.arrow", 100),
    "an empty entry": lambda folder: (folder / "entry.json").write_text(""),
    "another entry": lambda folder: (folder / "entry.json").write_text("[1]"),
    "a fact changed": lambda folder: (folder / "entry.json").write_text(
        (folder / "entry.json").read_text().replace('"truncated": ', '"truncated": 1')),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_thrown_away(damage: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = encode(TASK, LABELLED, tokenizer("bert"), 12, (), cache)
    DAMAGES[damage](cache.entries()[0].path)
    found = encode(TASK, LABELLED, tokenizer("bert"), 12, (), cache)
    assert same(found, encode(TASK, LABELLED, tokenizer("bert"), 12)) and len(made) == 23
    assert "were of no use" in found.notes[-1]
    assert "were read from" in encode(TASK, LABELLED, tokenizer("bert"), 12, (), cache).notes[-1]


def test_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **facts: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "finish", full)
    found = encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path))
    assert len(found) == 23 and "no space left on the disk" in found.notes[-1]
    assert not list((tmp_path / "tokens").iterdir())


def test_a_place_that_may_not_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path / "file"))
    assert len(found) == 23 and "are not kept" in found.notes[-1]


def forked(work: Callable[[], object]) -> int:
    """The number of a process that does ``work`` and nothing else: it has all modules already."""
    process = os.fork()
    if not process:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return process


def test_killed_while_writing_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        finish = Writer.finish

        def killed(self: Writer, **facts: Any) -> None:
            finish(self, **facts)
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(Writer, "finish", killed)
        encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path))

    assert os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == -signal.SIGKILL
    (left,) = (tmp_path / "tokens").iterdir()
    assert ".tmp-" in left.name and (left / "entry.json").exists() and Cache(tmp_path).entries() == []
    for path in (left, *left.iterdir()):
        os.utime(path, (time.time() - 3600,) * 2)
    found = encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path))
    assert len(found) == 23 and not left.exists(), "what a kill left is swept away by whoever writes next"


def test_processes_at_once(tmp_path: Path) -> None:
    rows = labelled(300)
    expected = encode(TASK, rows, tokenizer("bert"), 12)

    def work() -> None:
        for _ in range(5):
            assert same(encode(TASK, rows, tokenizer("bert"), 12, (), Cache(tmp_path)), expected)
            for entry in Cache(tmp_path).entries():
                Cache(tmp_path).drop(entry.path.name)

    processes = [forked(work) for _ in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0] * 4
    assert len(encode(TASK, rows, tokenizer("bert"), 12, (), Cache(tmp_path))) == 300
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [Cache(tmp_path).entries()[0].path.name]


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def put(name: str, age: int, limit: int = 10**9) -> None:
        cache.add(name, lambda folder: (folder / "file").write_bytes(bytes(100)), limit)
        if cache.place(name).exists():
            os.utime(cache.place(name), (time.time() - age,) * 2)

    for name, age in (("a", 30), ("b", 20), ("c", 10)):
        put(name, age)
    cache.used("a")
    put("d", 0, limit=250)
    assert {entry.path.name for entry in cache.entries()} == {"a", "d"}
    put("e", 0, limit=50)
    assert [entry.path.name for entry in cache.entries()] == ["e"], "what is needed now stays, however large"


def test_an_entry_in_use_may_be_removed(tmp_path: Path) -> None:
    found = encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path))
    Cache(tmp_path).drop(Cache(tmp_path).entries()[0].path.name)
    assert same(found, encode(TASK, LABELLED, tokenizer("bert"), 12))


def test_few_rows_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "FEWEST", 2000)
    encode(TASK, LABELLED, tokenizer("bert"), 12, (), Cache(tmp_path))
    assert not list(tmp_path.iterdir())


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora import DataConfig
    from lora.training.prepare import read_rows

    def place(**settings: Any) -> Path | None:
        found = read_rows(labelled(30), None, DataConfig(**settings), 0).cache
        return found and found.folder

    monkeypatch.setenv("LORA_CACHE", str(tmp_path / "x"))
    assert place() == tmp_path / "x" / "tokens" and place(cache="no") is None
    assert place(cache=str(tmp_path / "y")) == tmp_path / "y" / "tokens"
    monkeypatch.delenv("LORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "z"))
    assert place() == tmp_path / "z" / "lora" / "tokens"
