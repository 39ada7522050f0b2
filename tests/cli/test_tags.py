"""Tags for words through the real commands: train, eval, predict, report, PEFT's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import lora
from lora.cli import main
from small_base import save_base, tagged, write_jsonl


@pytest.fixture(scope="module")
def bert(tmp_path_factory: Any) -> Path:
    return save_base(tmp_path_factory.mktemp("bert"), initializer_range=0.1)


@pytest.fixture(scope="module")
def run(bert: Path, tmp_path_factory: Any) -> Path:
    """A finished run on a CoNLL file; some sentences are longer than it takes."""
    folder = tmp_path_factory.mktemp("job")
    lines = ["".join(f"{w}\t{t}\n" for w, t in zip(r["tokens"], r["tags"], strict=True)) for r in tagged(200)]
    (folder / "train.conll").write_text("\n".join(lines))
    done = lora(
        "train", "--model", bert, "--data", folder / "train.conll", "--output", folder / "run", "--rank", 4,
        "--epochs", 6, "--lr", "1e-2", "--max-length", 10,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "Task token-classification" in said and "by IOB2, of the types animal, sky" in said
    assert "overlapping windows" in said and "F1 strict" in said and "Evaluation on 18 rows" in said
    return folder / "run"


def test_report(run: Path) -> None:
    text, facts = (run / "report.md").read_text(), json.loads((run / "report.json").read_text())
    assert "| animal | " in text and "| class | support | precision | recall | F1 |" in text
    assert "always 'O', the most frequent tag" in text
    found = facts["evaluation"]["metrics"]["default"]
    assert facts["evaluation"]["best_metric"] == "f1" and found["f1"] > 0.9
    assert found["per_class"]["animal"]["support"] > 10


def test_eval_agrees_with_predict(run: Path, tmp_path: Path) -> None:
    rows = tagged(40, seed=5)
    data = write_jsonl(tmp_path / "test.jsonl", rows)
    done = lora("eval", run, "--data", data, "--json", "--no-latency")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["metrics"][run.name]
    answers = [json.loads(line) for line in lora("predict", run, "--data", data).stdout.splitlines()]
    assert [answer["words"] for answer in answers] == [row["tokens"] for row in rows], "one answer for each row"
    pairs = [(s, t) for answer, row in zip(answers, rows) for s, t in zip(answer["tags"], row["tags"], strict=True)]
    assert found["accuracy"] == pytest.approx(sum(said == true for said, true in pairs) / len(pairs))
    said = {(n, s["type"], s["first"], s["last"]) for n, answer in enumerate(answers) for s in answer["spans"]}
    true = {
        (n, tag[2:], place, place + (tag == "B-animal"))
        for n, row in enumerate(rows)
        for place, tag in enumerate(row["tags"])
        if tag.startswith("B-")
    }
    assert found["f1"] == pytest.approx(2 * len(said & true) / (len(said) + len(true))) and found["f1"] > 0.9


def test_predict_of_plain_text(run: Path, capsys: Any) -> None:
    assert main(["predict", str(run), "here  a big cat sleeps now then here there moon"]) == 0
    answer = json.loads(capsys.readouterr().out)
    spans = {span["text"]: (span["type"], span["start"], span["end"], span["words"]) for span in answer["spans"]}
    assert spans["big cat"] == ("animal", 8, 15, ["big", "cat"]) and spans["moon"] == ("sky", 43, 47, ["moon"])


def test_other_tags_and_broken_rows_are_refused(run: Path, bert: Path, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "bad.conll"
    file.write_text("cat B-plant\n\nsun O\n")
    assert main(["eval", str(run), "--data", str(file)]) == 2
    said = capfd.readouterr().err
    assert "'B-plant': 1 row" in said and "line 1" in said and "Traceback" not in said
    data = write_jsonl(tmp_path / "bad.jsonl", [*tagged(30), {"tokens": ["cat"], "tags": []}])
    assert main(["train", "--model", str(bert), "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert "tags is empty: line 31" in said and "Traceback" not in said


def test_the_folder_is_read_by_peft_with_the_same_logits(run: Path, bert: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from lora import LoRA

    folder = run / "adapter"
    facts = json.loads((folder / "adapter_config.json").read_text())
    assert facts["task_type"] == "TOKEN_CLS" and facts["modules_to_save"] == ["classifier"]
    labels = json.loads((folder / "lora.json").read_text())["task"]["labels"]
    assert labels == ["B-animal", "B-sky", "I-animal", "I-sky", "O"]

    def base() -> Any:
        return AutoModelForTokenClassification.from_pretrained(bert, num_labels=len(labels)).eval()

    theirs = peft.AutoPeftModelForTokenClassification.from_pretrained(folder, num_labels=len(labels)).eval()
    ours = LoRA(base(), name=None).eval()
    ours.load_adapter(folder, "tags")
    batch = AutoTokenizer.from_pretrained(bert)(["red cat sings", "moon here"], return_tensors="pt", padding=True)
    with torch.no_grad():
        one, other = theirs(**batch).logits, ours(**batch).logits
        assert not torch.allclose(one, base()(**batch).logits, atol=1e-2)
    assert one.shape == other.shape == (*batch["input_ids"].shape, 5)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_merge(run: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    assert main(["merge", str(run), "--output", str(tmp_path / "merged")]) == 0
    said = pipeline("token-classification", model=str(tmp_path / "merged"))("big cat")
    assert [token["entity"] for token in said] == ["B-animal", "I-animal"]
