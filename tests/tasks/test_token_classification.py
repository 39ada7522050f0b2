"""Tags for words: columns, pieces of words, windows, losses, spans."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import cross_entropy

from lora.config import DataConfig
from lora.errors import DataError, ModelError
from lora.tasks import TASKS, from_state
from lora.tasks.inputs import as_rows
from lora.tasks.recognise import recognise
from lora.tasks.tokens import IGNORED
from lora.tasks.words import Pieces, windows

SHARED = Path(__file__).parents[2].parent / "shared"
Tokens = TASKS["token-classification"]
COLUMNS = {"tokens": "tokens", "tags": "tags"}
PLACES = [("Where is my card", "O O B-x I-x"), ("the river", "O B-y"), ("cancel", "O")]


def rows(sentences: list[tuple[str, str]] = PLACES) -> list[dict[str, Any]]:
    return [{"tokens": words.split(), "tags": tags.split()} for words, tags in sentences]


def learn(data: list[dict[str, Any]] | None = None) -> Any:
    return Tokens.from_rows(data or rows(), COLUMNS)


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    return str(caught.value)


def certain(task: Any, batch: dict[str, torch.Tensor], wrong: int = 0) -> Any:
    """Outputs that say the labels of ``batch``, each shifted by ``wrong``."""
    places = (batch["labels"].clamp(min=0) + wrong) % len(task.labels)
    return SimpleNamespace(logits=9.0 * torch.nn.functional.one_hot(places, len(task.labels)).float())


# -- columns ----------------------------------------------------------------------------------------------------------

TAGGED = {"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}


@pytest.mark.parametrize(
    ("row", "task", "found"),
    [
        (TAGGED, "token-classification", {"tokens": "tokens", "tags": "ner_tags"}),
        ({"words": ["a"], "labels": ["O"]}, "token-classification", {"tokens": "words", "tags": "labels"}),
        ({"Tokens": ["a"], "POS_tags": [3]}, "token-classification", {"tokens": "Tokens", "tags": "POS_tags"}),
        ({"text": "a b", **TAGGED}, "token-classification", {"tokens": "tokens", "tags": "ner_tags"}),
        ({"tokens": "a b", "tags": "O B-x"}, "token-classification", {"tokens": "tokens", "tags": "tags"}),
        (
            {"text": "a b", "tokens": ["a", "b"], "labels": ["O", "B-x"]},
            "token-classification",
            {"tokens": "tokens", "tags": "labels"},
        ),
        # What classifies the text is clearer than tags beside it; lists of another length are no tags.
        ({"text": "a b", "label": "x", **TAGGED}, "classification", {"text": "text", "label": "label"}),
        ({"text": "a b", "tokens": ["a", "b"], "labels": ["x"]}, "multi-label", {"text": "text", "label": "labels"}),
        ({"text": "a b", "tags": ["x", "y"]}, "causal", {"text": "text"}),
    ],
)
def test_columns_are_recognised(row: dict[str, Any], task: str, found: dict[str, str]) -> None:
    columns = recognise([row] * 3, DataConfig())
    assert (columns.task, columns.roles) == (task, found)


def test_columns_that_are_named() -> None:
    row = {"text": "a b", "label": "x", "marks": ["O", "B-x"], **TAGGED}
    named = recognise([row] * 3, DataConfig(columns={"tags": "marks"}))
    assert (named.task, named.roles) == ("token-classification", {"tokens": "tokens", "tags": "marks"})
    asked = recognise([{"text": "a b", "tags": "O O"}] * 3, DataConfig(task="token-classification"))
    assert asked.roles == {"tokens": "text", "tags": "tags"}
    data = [{"text": "a b", "label": "x", "tokens": ["a", "b"], "slots": ["O", "B-x"]}] * 3
    assert recognise(data, DataConfig(task="token-classification")).roles == {"tokens": "tokens", "tags": "slots"}
    both = recognise([{**TAGGED, "pos_tags": ["X", "Y"]}] * 3, DataConfig())
    assert both.roles["tags"] == "ner_tags" and "Preferred over 'pos_tags'" in both.how


# -- what is learned --------------------------------------------------------------------------------------------------


def test_tags_and_scheme() -> None:
    task = learn()
    assert task.scheme == "IOB2" and task.labels == ["B-x", "B-y", "I-x", "I-y", "O"] and task.types == ["x", "y"]
    said = " ".join(task.remarks())
    assert "by IOB2, of the types x, y" in said and "No row has these tags, which the scheme allows: I-y." in said
    assert task.model_options()["id2label"] == dict(enumerate(task.labels))
    again = from_state(json.loads(json.dumps(task.state())))
    assert type(again) is type(task) and again.state() == task.state()
    plain = learn(rows([("a b", "NN VB"), ("c", "NN")]))
    assert plain.scheme is None and plain.labels == ["NN", "VB"] and "mark no spans" in plain.remarks()[0]


def test_numbers_and_names_of_classes() -> None:
    import datasets

    data = [{"tokens": ["a", "b"], "tags": [0, 10]}, {"tokens": ["c"], "tags": [9]}]
    task = learn(data)
    assert task.labels == ["0", "9", "10"] and "They are numbers" in task.remarks()[0]
    said = task.answers(data, SimpleNamespace(examples=[{"row": 0}]), [{"tags": ["10", "0"], "scores": [1.0, 0.5]}])
    assert said[0] == {"words": ["a", "b"], "tags": [10, 0], "scores": [1.0, 0.5]}
    names = datasets.ClassLabel(names=["O", "B-x", "I-x"])
    features = datasets.Features(tokens=datasets.List(datasets.Value("string")), tags=datasets.List(names))
    named = as_rows(
        datasets.Dataset.from_list([{"tokens": ["a", "b"], "tags": [1, 2]}, {"tokens": ["c"], "tags": [0]}], features),
        "data",
    )
    assert named[0]["tags"] == ["B-x", "I-x"] and learn(named).scheme == "IOB2"


def test_cells_of_pandas_and_texts() -> None:
    import pandas

    frame = pandas.DataFrame([{"tokens": np.array(["a", "b"]), "tags": np.array([0, 1])}] * 2)
    assert learn(as_rows(frame, "data")).labels == ["0", "1"]
    texts = [{"tokens": "Where is  my card", "tags": "O O\tB-x I-x"}]
    assert learn(texts).labels == ["B-x", "I-x", "O"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags, where each word needs one tag: row 2"),
        ({"tokens": [], "tags": []}, "tokens is empty: row 2"),
        ({"tokens": [], "tags": []}, "tags is empty: row 2"),
        ({"tokens": " ", "tags": ["O"]}, "tokens is empty: row 2"),
        ({"tokens": None, "tags": ["O"]}, "tokens is missing: row 2"),
        ({"tags": ["O"]}, "tokens is missing: row 2"),
        ({"tokens": 5, "tags": ["O"]}, "tokens is of the type int, not a list of words: row 2"),
        ({"tokens": ["a", 5], "tags": ["O", "O"]}, "tokens holds a word that is of the type int, not text: row 2"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "tokens holds a word that is missing: row 2"),
        ({"tokens": ["\ud800"], "tags": ["O"]}, "tokens holds a word that holds half a character"),
        ({"tokens": ["a"], "tags": None}, "tags is missing: row 2"),
        ({"tokens": ["a"], "tags": 3}, "tags is of the type int, not a list of tags: row 2"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "tags lacks the tag of a word: row 2"),
        ({"tokens": ["a", "b"], "tags": ["O", " "]}, "tags lacks the tag of a word: row 2"),
        ({"tokens": ["a"], "tags": [{"start": 0}]}, "tags holds a dict, which is no tag: row 2"),
    ],
)
def test_bad_rows_are_refused_with_their_number(row: dict[str, Any], part: str, tokenizer: Any) -> None:
    data = [*rows()[:1], row, *rows()[1:]]
    message = refusal(learn, data)
    assert part in message and "1 of 4 rows" in message and message.endswith("correct or remove these rows")
    assert part in refusal(learn().encode, data, tokenizer, 32)


def test_data_that_cannot_be_learned(tokenizer: Any) -> None:
    assert "every word has the tag 'O'" in refusal(learn, rows([("a b", "O O")]))
    message = refusal(learn().encode, rows([("a b", "O B-z"), ("a", "B-z"), ("a a", "B-w B-w")]), tokenizer, 32)
    for part in ("not in the training data", "'B-z': 2 rows", "'B-w': 1 row", "known: B-x, B-y, I-x, I-y, O"):
        assert part in message
    assert "no row has the column 'tags'" in refusal(learn().encode, [{"tokens": ["a"]}], tokenizer, 32)
    assert "max_length 2 leaves no room" in refusal(learn().encode, rows(), tokenizer, 2)
    with pytest.raises(ModelError, match="a fast one is needed"):
        learn().encode(rows(), SimpleNamespace(is_fast=False), 32)


def test_broken_tags_are_counted(tokenizer: Any) -> None:
    data = rows([("a b c", "O I-x I-x"), ("a", "B-x"), ("a b", "B-x I-y"), ("a", "B-y")])
    encoded = learn(data).encode(data, tokenizer, 32)
    assert len(encoded.notes) == 1 and encoded.notes[0].startswith("3 words whose tag belongs to no span by IOB2")
    assert encoded.notes[0].endswith("as in seqeval: rows 1, 3.")
    assert learn(data).encode(data, tokenizer, 32, supervised=False).notes == []


# -- pieces and windows -----------------------------------------------------------------------------------------------


def check_first_pieces(task: Any, data: list[dict[str, Any]], encoded: Any, tokenizer: Any) -> None:
    """In every example: special tokens around, and each label at the first piece of a word, all words in order."""
    cut = Pieces.of(tokenizer)
    pieces = list(cut([row["tokens"] for row in data]))
    told: list[list[str]] = [[] for _ in data]
    for example in encoded.examples:
        ids, labels = example["input_ids"], example["labels"]
        inner = ids[: len(ids) - len(cut.after)]
        assert ids[: len(cut.before)] == cut.before and ids[len(inner) :] == cut.after
        words = pieces[example["row"]]
        for place, label in enumerate(labels):
            if label != IGNORED:
                word = words[len(told[example["row"]])] or [cut.unknown]
                assert inner[place : place + len(word)] == word[: len(inner) - place]
                told[example["row"]].append(task.labels[label])
    assert told == [row["tags"] for row in data], "every word is supervised exactly once"


@pytest.mark.parametrize("frame", [(True, True), (False, False)])
def test_the_first_piece_of_a_word_carries_its_tag(frame: tuple[bool, bool], make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(*frame)
    task, data = learn(), rows()
    encoded = task.encode(data, tokenizer, 64)
    check_first_pieces(task, data, encoded, tokenizer)
    # It tells words after a space from others: sentences are cut as running text is.
    assert Pieces.of(tokenizer).space == " "
    for row, example in zip(data, encoded.examples):
        assert example["input_ids"] == tokenizer(" ".join(row["tokens"]))["input_ids"]
    assert encoded.supervised == [4, 2, 1] and encoded.notes == [] and encoded.truncated == 0
    assert encoded.lengths == [len(example["input_ids"]) for example in encoded.examples]


def test_settings_of_an_earlier_call_are_not_in_force(tokenizer: Any) -> None:
    tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")
    check_first_pieces(learn(), rows(), learn().encode(rows(), tokenizer, 64), tokenizer)


def test_words_without_a_piece_are_tagged_too() -> None:
    from small_base import tokenizer as words_only

    tokenizer = words_only("bert")
    data = [{"tokens": ["cat", "", "dog", " "], "tags": ["B-x", "O", "B-x", "I-x"]}, {"tokens": ["sun"], "tags": ["O"]}]
    task = learn(data)
    encoded = task.encode(data, tokenizer, 32)
    assert encoded.examples[0]["input_ids"] == [
        2,
        *tokenizer.convert_tokens_to_ids(["cat", "[UNK]", "dog", "[UNK]"]),
        3,
    ]
    check_first_pieces(task, data, encoded, tokenizer)
    assert encoded.notes[0].startswith("2 words without a token") and encoded.notes[0].endswith("unknown one: row 1.")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_windows_answer_for_each_word_once(data: st.DataObject) -> None:
    room = data.draw(st.integers(1, 40))
    sizes = data.draw(st.lists(st.integers(1, room), min_size=1, max_size=60))
    found = windows(sizes, room)
    told = [place for window in found for place in range(window.first, window.last)]
    assert told == list(range(len(sizes)))
    for window in found:
        assert window.start <= window.first < window.last <= window.end
        assert sum(sizes[window.start : window.end]) <= room
    if sum(sizes) <= room:
        assert len(found) == 1
    if max(sizes) <= room // 8 and len(found) > 1:  # short words: each has context on both sides
        for window in found:
            left, right = sum(sizes[window.start : window.first]), sum(sizes[window.last : window.end])
            assert window.start == 0 or left > room // 8 - max(sizes)
            assert window.end == len(sizes) or right > room // 8 - max(sizes)


def long_rows() -> list[dict[str, Any]]:
    tags = ["O", "B-x", "I-x", "B-y"] * 10
    return [*rows(), {"tokens": ["card", "order", "river", "my"] * 10, "tags": tags}]


def test_long_sentences_become_windows(tokenizer: Any) -> None:
    task, data = learn(), long_rows()
    encoded = task.encode(data, tokenizer, 16)
    assert max(encoded.lengths) <= 16 and encoded.truncated == 1 and len(encoded) > 5
    check_first_pieces(task, data, encoded, tokenizer)
    assert sum(encoded.supervised) == sum(len(row["tags"]) for row in data)
    assert encoded.notes == [
        f"1 of 4 rows was longer than 16 tokens and became {len(encoded) - 3} overlapping windows; each word is in one "
        "of them to be tagged."
    ]
    longest = [{"tokens": ["x" * 100, "a"], "tags": ["O", "B-x"]}]
    encoded = task.encode(longest, tokenizer, 16)
    check_first_pieces(task, longest, encoded, tokenizer)
    assert "1 word of more than 16 tokens, which were cut: row 1." in encoded.notes


# -- losses, predictions, metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_are_torchs_and_ignore_padded_columns(side: str, smoothing: float, tokenizer: Any) -> None:
    task = learn()
    batch = task.collate(task.encode(long_rows(), tokenizer, 24).examples, 0, side)
    logits = torch.randn(*batch["labels"].shape, 5, generator=torch.Generator().manual_seed(1)) * 4
    wider = torch.cat([logits, torch.full((*logits.shape[:2], 2), -math.inf)], dim=-1).to(torch.bfloat16)
    wider.requires_grad_()
    sums, counts = task.row_losses(SimpleNamespace(logits=wider), batch, smoothing)
    plain = logits.to(torch.bfloat16).float()
    for row, (total, count) in enumerate(zip(sums, counts)):
        expected = cross_entropy(plain[row], batch["labels"][row], reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(total, expected)
        assert count == (batch["labels"][row] != IGNORED).sum()
    assert sums.dtype == torch.float32
    sums.sum().backward()
    assert wider.grad is not None and wider.grad.isfinite().all()


def test_losses_agree_with_the_models_own(tokenizer: Any) -> None:
    from transformers import BertConfig, BertForTokenClassification

    task = learn()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, **task.model_options(),
    )  # fmt: skip
    batch = task.collate(task.encode(rows(), tokenizer, 64).examples, 0)
    out = BertForTokenClassification(config).eval()(**batch)
    sums, counts = task.row_losses(out, batch)
    torch.testing.assert_close(sums.sum() / counts.sum(), out.loss)


def test_windows_are_put_together_before_spans_are_counted(tokenizer: Any) -> None:
    """Spans that lie across the border of two windows are one."""
    task, data = learn(), long_rows()
    found = {}
    for max_length in (12, 200):
        encoded = task.encode(data, tokenizer, max_length)
        batch = task.collate(encoded.examples, 0)
        said = task.predictions(certain(task, batch), batch)
        found[max_length] = task.metrics(said, task.targets(encoded.examples), 1.0, 2)
    assert found[12] == found[200]
    assert found[12]["f1"] == found[12]["f1_strict"] == found[12]["accuracy"] == 1 and found[12]["loss"] == 0.5
    assert found[12]["per_class"]["x"]["support"] == 11 and found[12]["per_class"]["y"]["support"] == 11
    assert set(task.measures) == {key for key, value in found[12].items() if not isinstance(value, dict)}


def test_metrics_by_hand() -> None:
    task = learn()
    true = [{"row": 0, "tags": ["O", "B-x", "I-x"]}, {"row": 1, "tags": ["B-y", "O", "O", "O"]}]
    said = [{"tags": ["O", "I-x", "I-x"]}, {"tags": ["B-y", "B-x", "O", "O"]}]
    found = task.metrics(said, true, 3.0, 7)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == 1 and found["f1"] == pytest.approx(0.8)
    assert found["f1_strict"] == pytest.approx(0.5), "an I- alone begins no span in the strict mode"
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["per_class"]["x"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    json.dumps(found)
    plain = learn(rows([("a b", "NN VB"), ("c", "O")]))
    found = plain.metrics([{"tags": ["NN", "O", "VB"]}], [{"row": 0, "tags": ["NN", "O", "NN"]}], 1.0, 1)
    assert found["f1"] == found["f1_strict"] == 0.5 and found["f1_macro"] == pytest.approx(1 / 3)


def test_answers_name_spans_and_where_they_are(tokenizer: Any) -> None:
    task = learn()
    text = "  Where is\tmy card"
    data = [{"tokens": text}, {"tokens": ["my", "card", "card"]}]
    encoded = task.encode(data, tokenizer, 64, supervised=False)
    assert encoded.supervised == [0, 0] and [sum(x != IGNORED for x in e["labels"]) for e in encoded.examples] == [4, 3]
    said = [{"tags": ["O", "O", "B-x", "I-x"], "scores": [1.0, 1.0, 0.8, 0.6]}]
    said += [{"tags": ["B-y", "B-y", "O"], "scores": [0.5, 0.25, 1.0]}]
    first, second = task.answers(data, encoded, said)
    assert first["words"] == ["Where", "is", "my", "card"] and first["tags"] == ["O", "O", "B-x", "I-x"]
    assert first["spans"] == [
        {
            "type": "x", "words": ["my", "card"], "first": 2, "last": 3, "start": 11, "end": 18, "text": "my card",
            "score": pytest.approx(0.7),
        }
    ]  # fmt: skip
    assert text[11:18] == "my card"
    assert [(span["type"], span["first"], span["last"], span["score"]) for span in second["spans"]] == [
        ("y", 0, 0, 0.5),
        ("y", 1, 1, 0.25),
    ]
    assert "start" not in second["spans"][0] and json.dumps([first, second])


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared data sets are not on this machine")
def test_real_data(make_tokenizer: Any) -> None:
    from lora.data.sources import load_rows

    data = load_rows(str(SHARED / "data" / "wnut17"))
    columns = recognise(data, DataConfig())
    assert columns.task == "token-classification"
    task = Tokens.from_rows(data, columns.roles)
    assert task.scheme == "IOB2" and len(task.labels) == 13
    test = load_rows(f"{SHARED / 'data' / 'wnut17'}#300", "test")
    tokenizer = make_tokenizer(begin=True, end=True)
    encoded = task.encode(test, tokenizer, 32)
    check_first_pieces(task, test, encoded, tokenizer)
    batch = task.collate(encoded.examples, 0)
    right = task.metrics(
        task.predictions(certain(task, batch), batch), task.targets(encoded.examples), 1.0, sum(encoded.supervised)
    )
    entities = sum(tag.startswith("B-") for row in test for tag in row["tags"])
    assert (
        right["f1"] == right["f1_strict"] == 1
        and sum(row["support"] for row in right["per_class"].values()) == entities
    )
