"""Files, folders and hub ids to rows: what is read, and that every bad input is named with its place."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from lora import hub
from lora.config import DataConfig
from lora.data.readers import STREAMED, stream_file
from lora.data.rows import SourceRow
from lora.data.sources import load_rows, load_splits
from lora.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"text": "good", "label": "a"}, {"text": "bad", "label": "b"}]


def put(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(source: str, split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(source, split)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl(ROWS)),
        ("a.jsonl", "\n" + jsonl(ROWS).replace("\n", "\r\n\r\n")),
        ("a.jsonl", "\ufeff" + jsonl(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.json", jsonl(ROWS)),
        ("a.json", json.dumps({"data": ROWS})),
        ("a.json", json.dumps({"text": ["good", "bad"], "label": ["a", "b"]})),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS[:1]})),
        ("a.csv", "text,label\ngood,a\n\nbad,b\n"),
        ("a.csv", '\ufefftext,label\r\n"good",a\r\nbad,"b"\r\n'),
        ("a.csv", "text;label\ngood;a\nbad;b"),
        ("a.csv", "text\tlabel\ngood\ta\nbad\tb"),
        ("a.csv", "text,label\rgood,a\rbad,b\r"),
        ("a.ndjson", jsonl(ROWS)),
        ("a.tsv", "text\tlabel\ngood\ta\nbad\tb\n"),
    ],
)
def test_a_file_gives_its_rows(tmp_path: Path, name: str, content: str) -> None:
    path = put(tmp_path / name, content)
    assert load_rows(path) == ROWS
    if Path(name).suffix in STREAMED:
        assert list(stream_file(Path(path))) == ROWS


def test_line_separators_inside_a_json_string_do_not_end_the_line(tmp_path: Path) -> None:
    row = {"text": "one\u2028two\u0085three\x0cfour"}
    assert load_rows(put(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False))) == [row]


def test_csv_keeps_quoted_separators_line_breaks_and_long_fields(tmp_path: Path) -> None:
    long = "x" * 200_000
    rows = load_rows(put(tmp_path / "a.csv", f'text,label\n"a, ""b""\nc",1\n{long},2\n'))
    assert rows == [{"text": 'a, "b"\nc', "label": "1"}, {"text": long, "label": "2"}]


def test_csv_index_column_of_pandas_gets_a_name(tmp_path: Path) -> None:
    assert load_rows(put(tmp_path / "a.csv", ",text\n0,good\n")) == [{"unnamed_1": "0", "text": "good"}]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert load_rows(str(tmp_path / "a.parquet")) == ROWS
    assert load_rows(f"{tmp_path / 'a.parquet'}#1") == ROWS[:1]


def test_parquet_of_hugging_face_gets_class_names_back(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    assert [row["label"] for row in load_rows(str(tmp_path / "a.parquet"))] == ["pos", "neg", None]
    data.save_to_disk(str(tmp_path / "saved"))
    assert [row["label"] for row in load_rows(str(tmp_path / "saved"))] == ["pos", "neg", None]


@pytest.mark.parametrize("stream", [False, True])
def test_arrow(tmp_path: Path, stream: bool) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS * 700)
    path = tmp_path / "a.arrow"
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)
    rows = load_rows(str(path))
    assert rows == ROWS * 700 == list(stream_file(path)) and rows[1300].number == 1301
    assert load_rows(f"{path}#3") == [*ROWS, ROWS[0]]


def test_txt_is_one_document_per_block_or_per_end_mark(tmp_path: Path) -> None:
    assert load_rows(put(tmp_path / "a.txt", "one\r\nstill one\r\n\r\n \r\ntwo\n")) == [
        {"text": "one\nstill one"},
        {"text": "two"},
    ]
    marked = put(tmp_path / "b.txt", "one\n\nstill one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert load_rows(marked) == [{"text": "one\n\nstill one"}, {"text": "two"}]


def spots(rows: list[dict]) -> list[tuple[str, str, int]]:
    assert all(isinstance(row, SourceRow) for row in rows)
    return [(Path(row.origin.name).name, row.origin.unit, row.number) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "\n" + jsonl(ROWS).replace("\n", "\n\n"), [("a.jsonl", "line", 2), ("a.jsonl", "line", 4)]),
        ("a.csv", 'text,label\n"good\n\nvery",a\n\nbad,b\n', [("a.csv", "line", 2), ("a.csv", "line", 6)]),
        ("a.json", json.dumps(ROWS, indent=2), [("a.json", "row", 1), ("a.json", "row", 2)]),
        ("a.json", json.dumps({"Train": ROWS[:1], "test": ROWS}), [("a.json (Train)", "row", 1)]),
        ("a.txt", "one\n\ntwo\n", [("a.txt", "document", 1), ("a.txt", "document", 2)]),
    ],
)
def test_a_row_knows_its_place(tmp_path: Path, name: str, content: str, expected: list[tuple[str, str, int]]) -> None:
    path = put(tmp_path / name, content)
    assert spots(load_rows(path)) == expected
    assert spots(load_rows(path + "#1")) == expected[:1]


def test_a_row_of_parquet_shards_and_saved_sets_knows_its_place(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    for part in "01":
        data.to_parquet(tmp_path / "shards" / f"train-{part}.parquet")
    found = spots(load_rows(str(tmp_path / "shards")))
    assert found == [(f"train-{part}.parquet", "row", number) for part in "01" for number in (1, 2)]
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(str(tmp_path / "saved"))
    assert spots(load_rows(str(tmp_path / "saved"), "dev"))[0] == ("saved (validation)", "row", 1)


def test_limit(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl(ROWS) + "broken\n")
    assert load_rows(path + "#1") == ROWS[:1]
    assert load_rows(path + "#2") == ROWS, "what lies behind the limit is not read"
    assert "'#0' takes no row" in refusal(path + "#0")
    for wrong in ("-1", "x-1", "2.5"):
        assert (
            f"behind # stands a number of rows (#500), a weight (#x2) or both (#500x2), and not '{wrong}'"
            in refusal(f"{path}#{wrong}")
        )
    strange = put(tmp_path / "a.jsonl#1", "")
    assert "no such file" not in refusal(strange) and "type .jsonl#1" in refusal(strange), "a real file wins"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", "", ["is empty"]),
        ("a.csv", " \n ", ["is empty"]),
        (
            "a.jsonl",
            '{"text": 1}\n{"text": \n\n[1]\n',
            ["2 rows", "line 2: not valid JSON", '{"text":', "line 4: a list, not"],
        ),
        ("a.jsonl", "x\n" * 9, ["9 rows cannot be read", "line 5:", "… and 4 more"]),
        ("a.jsonl", "[\n" + jsonl(ROWS) + "]", ["rename the file to .json"]),
        ("a.jsonl", "[" * 100_000, ["line 1"]),
        ("a.jsonl", '{"text": %s}' % ("9" * 5000), ["line 1: a number of thousands of digits"]),
        ("a.json", '{"text": [%s]}' % ("9" * 5000), ["a number of thousands of digits"]),
        ("a.arrow", b"ARROW1 nonsense", ["not a readable arrow file"]),
        ("a.json", '[{"a": 1},\n {"a" 2}]', ["line 2, column 7", '{"a" 2}']),
        ("a.json", '[{"a": 1}, 3]', ["element 2: a number, not an object"]),
        ("a.json", "[]", ["holds nothing"]),
        ("a.json", '"hello"', ["a string; expected a list of objects"]),
        ("a.json", '{"version": 1, "paragraphs": []}', ["an object with the keys version, paragraphs"]),
        ("a.json", '{"text": ["a", "b"], "label": ["x"]}', ["columns of unequal length (text 2, label 1)"]),
        (
            "a.csv",
            "text,label\na,b,c\nd\ne,f",
            ["line 2: too many fields, 3 where the header has 2", "line 3: too few"],
        ),
        ("a.csv", "text,label,text\na,b,c", ["column name given twice: text"]),
        ("a.csv", "text,label\n", ["holds nothing but a header"]),
        ("a.csv", 'text,label\na,b\n"never ends,c\nd,e\n', ["row that begins on line 3", "quotes"]),
        ("a.tsv", "text\tlabel\na\n", ["line 2: too few fields", "(tab)"]),
        ("a.parquet", b"PAR1 nonsense", ["not a readable parquet file"]),
        ("a.parquet", b"", ["is empty"]),
        ("a.xlsx", b"x", ["cannot read files of the type .xlsx", ".jsonl"]),
        ("a.txt", b"fine\ncaf\xe9\n", ["byte 0xe9 at offset 8, line 2", "iconv -f WINDOWS-1252"]),
        ("a.csv", "text\nx".encode("utf-16"), ["is UTF-16, not UTF-8"]),
        ("a.csv", "text,label\nx,y".encode("utf-16-le"), ["is UTF-16LE, not UTF-8; re-encode it: iconv -f UTF-16LE"]),
        ("a.csv", "text,label\nx,y".encode("utf-16-be"), ["is UTF-16BE, not UTF-8"]),
        (
            "a.jsonl.gz",
            gzip.compress(b"{}", mtime=0),
            ["is packed with gzip, not a text file; unpack it: gunzip -k a.jsonl.gz"],
        ),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), ["is packed with gzip"]),
        ("a.xlsx", b"PK\x03\x04rest", ["a zip archive, as Excel files are too", "CSV"]),
        ("a.jsonl", b"PAR1\x15rest", ["is a parquet file", "name it .parquet"]),
        (
            "a.jsonl",
            '{"text": "x", "text": "y"}\r\n{"text": "z"}\r\n{"text"\r\n',
            ["line 1: the key 'text' stands twice in one object", "line 3: not valid JSON"],
        ),
        ("a.json", '[{"a": {"b": 1, "b": 2}}]', ["the key 'b' stands twice in one object; rename one"]),
        ("a.csv", "text\nx".encode("utf-32"), ["is UTF-32, not UTF-8"]),
    ],
)
def test_a_bad_file_is_refused_with_the_place(
    tmp_path: Path, name: str, content: str | bytes, parts: list[str]
) -> None:
    message = refusal(put(tmp_path / name, content))
    assert name in message
    for part in parts:
        assert part in message


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path / "training.jsonl", jsonl(ROWS))
    assert "did you mean" in refusal(str(tmp_path / "trainin.jsonl"))
    assert "is not there either" in refusal(str(tmp_path / "no" / "x.jsonl"))


def test_a_folder_with_split_names(tmp_path: Path) -> None:
    train = put(tmp_path / "train.jsonl", jsonl(ROWS))
    put(tmp_path / "dev.csv", "text,label\nok,a\n")
    put(tmp_path / "notes.txt", "to do")
    put(tmp_path / "README.md", "about")
    splits = load_splits(DataConfig(train=str(tmp_path)))
    assert (splits.train, splits.validation, splits.test) == (ROWS, [{"text": "ok", "label": "a"}], None)
    assert splits.notes == [f"Not read in {tmp_path}: notes.txt (the names are no split's)."]
    assert [source.split for source in splits.sources] == ["train", "validation"]
    assert splits.sources[0].name == train
    assert splits.sources[0].sha256 == hashlib.sha256(jsonl(ROWS).encode()).hexdigest()
    assert load_rows(str(tmp_path), "valid") == splits.validation
    assert "has no test split (it has: validation, train)" in refusal(str(tmp_path), "test").replace(
        "train, validation", "validation, train"
    )


def test_shards_of_a_split_are_joined(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        put(tmp_path / f"train-0000{number}-of-00002.jsonl", jsonl([row]))
    put(tmp_path / "test.jsonl", jsonl(ROWS))
    assert load_rows(str(tmp_path)) == ROWS
    assert load_rows(f"{tmp_path}#1") == ROWS[:1]
    assert len(load_splits(DataConfig(train=str(tmp_path))).sources) == 3


def test_a_folder_without_split_names(tmp_path: Path) -> None:
    put(tmp_path / "one" / "all.jsonl", jsonl(ROWS))
    assert load_rows(str(tmp_path / "one")) == ROWS
    put(tmp_path / "texts" / "austen.txt", "a\n\nb")
    put(tmp_path / "texts" / "hardy.txt", "c")
    assert [row["text"] for row in load_rows(str(tmp_path / "texts"))] == ["a", "b", "c"]
    put(tmp_path / "two" / "seed.jsonl", jsonl(ROWS))
    put(tmp_path / "two" / "exam.jsonl", jsonl(ROWS))
    assert "several files and none named train (exam.jsonl, seed.jsonl)" in refusal(str(tmp_path / "two"))
    (tmp_path / "empty").mkdir()
    assert "no readable file in this folder" in refusal(str(tmp_path / "empty"))


def test_two_candidates_for_a_split_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", jsonl(ROWS))
    put(tmp_path / "train.csv", "text,label\nx,y\n")
    assert "more than one candidate for a split (train: train.csv, train.jsonl)" in refusal(str(tmp_path))


def test_named_validation_wins(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", jsonl(ROWS))
    put(tmp_path / "validation.jsonl", "broken and not looked at")
    other = put(tmp_path / "mine.jsonl", jsonl(ROWS[:1]))
    splits = load_splits(DataConfig(train=str(tmp_path), validation=other))
    assert splits.validation == ROWS[:1]
    assert [Path(source.name).name for source in splits.sources] == ["train.jsonl", "mine.jsonl"]


def test_the_training_file_is_no_validation_data(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match="is the training data too"):
        load_splits(DataConfig(train=path, validation=path))


def test_no_training_data_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training data is named"):
        load_splits(DataConfig())
    assert "split 'tst' is unknown" in refusal(str(tmp_path), "tst")


def test_json_with_splits(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", json.dumps({"train": ROWS, "val": ROWS[:1]}))
    splits = load_splits(DataConfig(train=path))
    assert (splits.train, splits.validation, splits.test) == (ROWS, ROWS[:1], None)
    assert load_rows(path, "validation") == ROWS[:1]
    assert "has no test split" in refusal(path, "test")


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    data = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "dev": datasets.Dataset.from_list(ROWS[:1])}
    )
    asked = []

    def load(path: str, name: str | None = None) -> datasets.DatasetDict:
        asked.append((path, name))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = load_splits(DataConfig(train="someone/something:part"))
    assert (splits.train, splits.validation, splits.test) == (ROWS, ROWS[:1], None)
    assert asked == [("someone/something", "part")] and len(splits.sources[0].sha256) == 64
    assert load_rows("something#1") == ROWS[:1]
    assert "has no test split (it has: train, dev)" in refusal("someone/something", "test")


def test_hub_failure_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def fail(*_: object) -> None:
        seen.append((huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("no route")

    seen: list[tuple[bool, bool]] = []
    monkeypatch.setattr(datasets, "load_dataset", fail)
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    for reachable, words in (
        (True, "not loadable from the hub either (ConnectionError: no route)"),
        (False, "reached;"),
    ):
        monkeypatch.setattr(hub, "is_reachable", lambda answer=reachable: answer)
        message = refusal("someone/something")
        assert "no such file or folder here" in message and words in message and "check the name" in message
    # A hub that does not answer is not asked again and again; afterwards all is as it was.
    assert seen == [(False, False), (True, True)]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_whether_the_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub.is_reachable()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", None)
    assert not hub.is_reachable(), "who is offline on purpose is not asked to wait"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not on this machine")
def test_real_data() -> None:
    splits = load_splits(DataConfig(train=str(SHARED / "bitext_support")))
    assert [len(rows or []) for rows in (splits.train, splits.validation, splits.test)] == [6480, 810, 810]
    assert len(load_rows(str(SHARED / "sms_spam"))) == 5574
    assert len(load_rows(str(SHARED / "english_novels"), "validation")) > 1000
    assert "has no train split (it has: test, validation)" in refusal(str(SHARED / "english_novels"))
    assert "train.txt: is empty" in refusal(str(SHARED / "tinystories"))
    assert len(load_rows(str(SHARED / "tinystories" / "test.txt#7"))) == 7
