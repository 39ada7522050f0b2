"""Rows that are read in parts: everything comes out as if they had been held in memory, and they are not."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lora import DataConfig, LoRA, Source, fit
from lora.data import stored, streams, tables
from lora.data.streams import RowStream
from lora.errors import DataError, SaveError
from lora.io.cache import Cache
from lora.model.base import load_base
from lora.tasks import encoding
from lora.tasks.encoding import encode
from lora.training.prepare import digest, read_rows
from small_base import labelled, stories, tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and batches of few rows."""
    for module, name, value in (
        (streams, "CHUNK", 7),
        (streams, "SAMPLE", 25),
        (stored, "BATCH", 4),
        (tables, "BATCH", 6),
    ):
        monkeypatch.setattr(module, name, value)


def scores(count: int = 60) -> list[dict[str, Any]]:
    return [{**row, "label": i / 7} for i, row in enumerate(labelled(count))]


def tagged(count: int = 60) -> list[dict[str, Any]]:
    return [{**row, "label": [row["label"], "x"][: 1 + i % 2]} for i, row in enumerate(labelled(count))]


def plain(count: int = 60) -> list[dict[str, Any]]:
    return [{"text": row["text"]} for row in labelled(count)]


def books() -> list[dict[str, Any]]:
    return [{"text": "the cat sat on the mat. " * size} for size in (300, 40, 2)]


def numbered(count: int = 60) -> list[dict[str, Any]]:
    return [{**row, "label": i % 30} for i, row in enumerate(labelled(count))]


KINDS = {"classes": labelled(60), "scores": scores(), "tags": tagged(), "stories": stories(60), "plain": plain(),
         "books": books(), "numbers": numbered()}  # fmt: skip


def put(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        datasets.Dataset.from_list(rows).to_csv(str(path), sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def places(rows: Any) -> list[tuple[dict[str, Any], Any, int]]:
    return [(dict(row), row.origin, row.number) for row in rows]


def alike(one: Any, other: Any) -> None:
    """All that `read_rows` finds, and the token ids."""
    assert isinstance(one.train, RowStream) and one.streamed and isinstance(other.train, list)
    assert one.task.state() == other.task.state()
    assert places(one.train) == places(other.train) and len(one.train) == len(other.train)
    assert places(one.held or []) == places(other.held or [])
    assert (one.notes, one.sources, one.shares) == (other.notes, other.sources, other.shares)
    tok = tokenizer("llama" if one.task.next_token else "bert")
    tokens, expected = (
        encode(one.task, one.train, tok, 12, one.shares),
        encode(other.task, other.train, tok, 12, other.shares),
    )
    assert list(tokens.examples) == list(expected.examples) and digest(tokens) == digest(expected)
    assert tokens.notes == expected.notes and list(tokens.lengths) == list(expected.lengths)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet", ".saved"])
def test_streamed_is_as_held(kind: str, suffix: str, tmp_path: Path) -> None:
    if kind == "tags" and suffix in (".csv", ".tsv"):
        pytest.skip("lists are none there")
    path = put(tmp_path / f"a{suffix}", KINDS[kind])
    settings = {"held_out": 0.2} if kind != "books" else {}
    one, other = (read_rows(path, None, DataConfig(streaming=yes, **settings), 0) for yes in (True, False))
    alike(one, other)
    assert one.held


@pytest.mark.parametrize("limit", ["", "#7", "#40"])
def test_sources_streamed_are_as_held(tmp_path: Path, limit: str) -> None:
    renamed = [{"sentence": row["text"], "intent": row["label"], "text": "no"} for row in labelled(50, 2)]
    sources = [
        put(tmp_path / "a.jsonl", labelled(60, 1)) + limit,
        Source(path=put(tmp_path / "b.parquet", renamed) + limit, weight=0.5, columns={"text": "sentence"}),
        put(tmp_path / "c.csv", labelled(30, 1)),
    ]
    one, other = (read_rows(sources, None, DataConfig(streaming=yes, held_out=0.2), 0) for yes in (True, False))
    alike(one, other)
    texts = [plain(60), plain(50)[20:]]
    files = [put(tmp_path / f"{place}.jsonl", rows) for place, rows in enumerate(texts)]
    alike(*(read_rows(files, None, DataConfig(streaming=yes, held_out=0.2), 0) for yes in (True, False)))


@pytest.mark.parametrize("whole", [True, False])
def test_data_sets_of_the_library(whole: bool) -> None:
    rows = labelled(60)
    found = datasets.Dataset.from_list(rows).cast_column("label", datasets.ClassLabel(names=["bird", "cat", "dog"]))
    given = found if whole else found.to_iterable_dataset()
    one = read_rows(given, None, DataConfig(streaming=True if whole else None), 0)
    alike(one, read_rows(found, None, DataConfig(streaming=False), 0))
    assert isinstance(read_rows(given, None, DataConfig(streaming=False), 0).train, list)
    alike(*(read_rows(found.with_format("numpy"), None, DataConfig(streaming=yes), 0) for yes in (True, False)))


def test_a_folder_and_its_other_splits(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"train-0000{number}-of-00003.jsonl", labelled(20, number))
    put(tmp_path / "dev.jsonl", labelled(9, 7))
    (tmp_path / "test.json").write_text(json.dumps(labelled(6, 8)))
    one, other = (read_rows(str(tmp_path), None, DataConfig(streaming=yes), 0) for yes in (True, False))
    alike(one, other)
    assert (len(one.held), len(one.test)) == (9, 6)


def test_what_is_wrong_is_told_by_file_and_line(tmp_path: Path) -> None:
    def refusal(text: str | bytes, name: str = "a.jsonl", **settings: Any) -> str:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError) as caught:
            read_rows(str(tmp_path / name), None, DataConfig(streaming=True, **settings), 0)
        return str(caught.value)

    good = json.dumps({"text": "a cat", "label": "x"}) + "\n"
    said = refusal(good * 9 + "{broken\n" + good * 50 + '{"a": 1, "a": 2}\n')
    assert "2 rows cannot be read" in said and "line 10: not valid JSON" in said and "line 61: the key 'a'" in said
    assert "label is missing: line 31" in refusal(good * 30 + '{"text": "b"}\n' + good.replace("x", "y") * 9)
    assert "byte 0xe9 at offset" in (said := refusal((good * 20).encode() + b"\xe9\n")) and "line 21" in said
    assert "is empty" in refusal("\n\n") and "is empty" in refusal("")
    assert "packed with gzip" in refusal(b"\x1f\x8b00")
    assert "line 12: too few fields" in refusal("text;label\n" + "a;b\n" * 10 + "c\n", "a.csv")
    assert "holds nothing but a header" in refusal("text,label\n", "a.csv")
    assert "not a readable parquet file" in refusal("no", "a.parquet")
    assert "every row has the label 'x'" in refusal(good * 40)
    assert "no column is recognised" in refusal('{"q": 1}\n' * 40)


def test_what_cannot_be_read_in_parts_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(labelled(30)))
    found = read_rows(str(tmp_path / "a.json"), None, DataConfig(streaming=True), 0)
    assert isinstance(found.train, list) and any(
        "a.json is held in memory: only .jsonl" in note for note in found.notes
    )


def test_by_itself_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.jsonl", labelled(30))
    saved = put(tmp_path / "b.saved", labelled(30))
    assert not read_rows(path, None, DataConfig(), 0).streamed
    monkeypatch.setattr(streams, "GROWTH", 1e12)
    assert read_rows(path, None, DataConfig(), 0).streamed and read_rows(saved, None, DataConfig(), 0).streamed
    assert not read_rows(path, None, DataConfig(streaming=False), 0).streamed


def test_kept_or_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "FEWEST", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = put(tmp_path / "a.jsonl", labelled(60))
    rows = read_rows(path, None, DataConfig(streaming=True), 0)
    held = read_rows(path, None, DataConfig(streaming=False), 0)
    for task, some in ((rows.task, rows.train), (held.task, held.train)):
        found = encode(task, some, tokenizer("bert"), 12, (), Cache(tmp_path / "cache"))
    assert "were read from" in found.notes[-1], "streamed or held, they are the same rows"
    aside = encode(rows.task, rows.train, tokenizer("bert"), 12)
    (folder,) = tmp_path.glob("lora-*")
    assert list(aside.examples) == list(found.examples)
    del aside
    gc.collect()
    assert not folder.exists()
    monkeypatch.setattr(stored.Writer, "finish", _full)
    with pytest.raises(SaveError, match="no space left on the disk; name a folder with more room in TMPDIR"):
        encode(rows.task, rows.train, tokenizer("bert"), 12, (), Cache(tmp_path / "other"))


def _full(*arguments: Any, **facts: Any) -> None:
    raise OSError(28, "No space left on device")


def test_no_more_rows_are_held_than_a_chunk(tmp_path: Path) -> None:
    """Rows that count themselves: never more than the sample, a chunk and what is held out are there."""
    there, most = 0, 0

    class Counted(streams.Row):
        def __init__(self, cells: dict[str, Any]) -> None:
            nonlocal there, most
            super().__init__(cells)
            there += 1
            most = max(most, there)

        def __del__(self) -> None:
            nonlocal there
            there -= 1

    def rows() -> Iterator[Any]:
        return (Counted({"text": f"cat {n} dog", "label": "ab"[n % 2]}) for n in range(2000))

    from lora.data.sources import Part
    from lora.tasks.agree import agree
    from lora.training.mixture import split_off

    part = Part("rows", RowStream(rows))
    task, _ = agree([part], DataConfig())
    held, _ = split_off([part], task, DataConfig(), 0)
    encoded = encode(task, part.train, tokenizer("bert"), 12)
    assert len(encoded) + len(held or []) == 2000 and most < 150


def test_training_and_resuming(llama: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", stories(40))

    def run(folder: str, streaming: bool, **more: Any) -> Any:
        torch.manual_seed(0)  # of A
        model = LoRA(load_base(str(llama), "AutoModelForCausalLM", torch.float32), rank=2)
        return fit(
            model, path, output_dir=tmp_path / folder, data=DataConfig(streaming=streaming), batch_size=8, epochs=2,
            learning_rate=1e-2, save_every=3, keep_checkpoints=9, progress=False, **more,
        )  # fmt: skip

    held, streamed = run("held", False), run("streamed", True)
    losses = [[entry["loss"] for entry in result.history if "loss" in entry] for result in (held, streamed)]
    assert losses[0] == losses[1] and held.best_value == streamed.best_value
    for step in sorted((tmp_path / "held" / "checkpoints").glob("step-*"))[2:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    again = run("held", True, resume=True)
    assert [entry["loss"] for entry in again.history if "loss" in entry] == losses[0]
