"""Benchmarks by lm-eval: one pass for all adapters, and the numbers of lm-eval's own model on the merged weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_rows import WORDS, texts, with_adapters, word_tokenizer

from lora.errors import ConfigError, DataError, ModelError
from lora.model.lora import LoRA
from tiny_models import tiny

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness (pip install 'lora-many[harness]')")

from lora.evaluation import harness, harness_lm  # noqa: E402
from lora.evaluation.harness import benchmark  # noqa: E402
from lora.evaluation.shared import Shared  # noqa: E402

TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
fewshot_split: train
training_split: train
""",
    "perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{long}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["w7", " w3"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks as lm-eval reads them, their data beside them; nothing is asked of the hub."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": text,
            "choices": [f" {WORDS[place]}", f" {WORDS[place + 1]}", f" {WORDS[2]} {WORDS[place + 2]}"],
            "answer": place % 3, "long": " ".join([text] * 9), "written": f"{WORDS[place]}",
        }
        for place, text in enumerate(texts(8))
    ]  # fmt: skip
    for name, part in (("test", rows), ("train", rows[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, text in TASKS.items():
        files = f"data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}"
        (folder / f"{name}.yaml").write_text(
            f"task: my_{name}\ndataset_path: json\ndataset_kwargs: {{{files}}}\ntest_split: test\n{text}"
        )
    return folder


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))


def writers(*names: str) -> LoRA:
    return with_adapters(tiny("llama", max_position_embeddings=40), *names)


def run(model: LoRA, folder: Path, *names: str, **options: Any) -> Any:
    return benchmark(
        model, [f"my_{name}" for name in names], include=folder, tokenizer=word_tokenizer("$A"),
        **{"batch_size": 6, **options},
    )  # fmt: skip


def test_the_numbers_of_lm_evals_own_model_on_merged_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    model = writers("a", "b")
    seen = _recorded(monkeypatch)
    run(model, folder, *TASKS)
    for name in ("base", "a", "b"):
        plain = tiny("llama", max_position_embeddings=40) if name == "base" else model.merge(name)
        theirs = HFLM(pretrained=plain, tokenizer=word_tokenizer("$A"), batch_size=3, device="cpu")
        texts_written = set()
        for kind, (requests, ours) in seen[name].items():
            found = getattr(theirs, kind)(requests, disable_tqdm=True)
            if kind == "loglikelihood":
                assert [greedy for _, greedy in ours] == [greedy for _, greedy in found]
                assert [value for value, _ in ours] == pytest.approx([value for value, _ in found], abs=2e-4)
            elif kind == "loglikelihood_rolling":
                assert ours == pytest.approx(found, abs=2e-3)
            else:
                assert ours == found
                texts_written |= set(ours)
        assert len(texts_written) > 3  # nothing would be compared where all were empty


def _recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Requests and answers of each adapter, by kind."""
    seen: dict[str, dict[str, Any]] = {}
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        monkeypatch.setattr(harness_lm.AdapterLM, kind, _recording(getattr(harness_lm.AdapterLM, kind), kind, seen))
    return seen


def _recording(function: Callable[..., Any], kind: str, seen: dict[str, dict[str, Any]]) -> Callable[..., Any]:
    def recording(self: Any, requests: Any, **options: Any) -> Any:
        found = function(self, requests, **options)
        seen.setdefault(self.name, {})[kind] = (list(requests), found)
        return found

    return recording


def test_one_pass_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is computed once, for all adapters, whatever their number; rows of several share a batch."""
    batches: list[list[str]] = []
    forward = LoRA._forward

    def counted(self: LoRA, *args: Any, adapters: Any = None, **options: Any) -> Any:
        batches.append(list(adapters))
        return forward(self, *args, adapters=adapters, **options)

    monkeypatch.setattr(LoRA, "_forward", counted)
    alone = run(writers("a", "b"), folder, "choices", adapters=["b"], baseline=False, batch_size=16)
    rows_alone, batches[:] = sum(map(len, batches)), []
    # A pass is shared where each adapter has at least 16 rows of it.
    found = run(writers("a", "b"), folder, "choices", batch_size=48)
    assert sum(map(len, batches)) == 3 * rows_alone
    assert all(set(names) == {"base", "a", "b"} for names in batches)
    assert found["my_choices"]["acc"]["b"]["value"] == alone["my_choices"]["acc"]["b"]["value"]


def test_results_stand_beside_the_base(folder: Path) -> None:
    found = run(writers("a"), folder, *TASKS)
    assert list(found["my_choices"]) == ["acc", "acc_norm"] and list(found["my_choices"]["acc"]) == ["base", "a"]
    assert found.documents == {"my_choices": 8, "my_perplexity": 8, "my_writing": 8}
    its, base = found["my_choices"]["acc"]["a"], found["my_choices"]["acc"]["base"]
    assert its["to_base"]["value"] == its["value"] - base["value"]
    for value in (its, base):
        if value["low"] is not None:
            assert value["low"] < value["value"] < value["high"]
    perplexity = found["my_perplexity"]["word_perplexity"]
    assert perplexity["a"]["value"] != perplexity["base"]["value"]
    assert perplexity["a"]["to_base"]["low"] is None  # no mean over documents
    assert perplexity["a"]["to_base"]["verdict"] == "not known" and its["to_base"]["verdict"] != "not known"
    assert its["to_base"]["comparisons"] == 3, "of seven metrics three are means over documents"
    assert "my_choices (8)" in found.notes[-1] and "Fewer than" not in found.notes[-1]
    assert found.higher_is_better["my_perplexity"]["word_perplexity"] is False
    json.dumps(found.to_dict(), allow_nan=False)
    written = found.grid().markdown()
    assert "| my_choices: acc |" in written and "difference" in written


def test_intervals_of_differences_are_those_of_pairs() -> None:
    from lora.evaluation.benchmarks import _difference

    def side(*values: float) -> dict[str, Any]:
        samples = [{"filter": "none", "acc": value} for value in values]
        return {"results": {"t": {"acc,none": sum(values) / len(values)}}, "samples": {"t": samples}}

    found, test = _difference(side(0, 1, 0, 1), side(1, 1, 0, 1), "t", "acc,none")
    assert found["value"] == 0.25 and found["stderr"] == pytest.approx(0.25)
    assert test is not None and (test.test, test.n, test.difference) == ("mcnemar", 4, 0.25)
    assert _difference(side(0.5, 1, 0), side(1, 1, 0), "t", "acc,none")[1].test == "bootstrap"


def test_limit_and_examples(folder: Path) -> None:
    found = run(writers("a"), folder, "choices", limit=3, fewshot=1)
    assert found.documents["my_choices"] == 3 and found.fewshot["my_choices"] == 1


def test_a_chat_template_and_what_ends_its_turns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer("$A")
    with pytest.raises(ConfigError, match="chat_template"):
        benchmark(writers("a"), "my_writing", include=folder, tokenizer=tokenizer, chat_template=True)
    tokenizer.chat_template = "[BOS] {% for m in messages %}w1 {{ m['content'] }} w2 {% endfor %}"
    seen = _recorded(monkeypatch)
    benchmark(writers("a"), "my_writing", include=folder, tokenizer=tokenizer, chat_template=True, limit=2)
    requests, _ = seen["a"]["generate_until"]
    assert requests[0].args[0] == f"[BOS] w1 {texts(8)[0]} w2 "
    lm = harness_lm.AdapterLM(_shared(writers("a"), tokenizer), "a")
    assert lm.tok_encode(requests[0].args[0]).count(1) == 1  # the beginning stands once


def _shared(model: LoRA, tokenizer: Any) -> Shared:
    return Shared(model, tokenizer, ["base", "a"], {"base": {2}, "a": {2}}, 0, 4, 40)


def test_equal_requests_are_requests_of_their_own(folder: Path) -> None:
    """Several samples of one prompt: each is drawn, and each adapter finds its own."""
    shared = _shared(writers("a"), word_tokenizer("$A"))
    instance = type("Instance", (), {"args": ("w1 w2", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8})})
    found = {name: harness_lm.AdapterLM(shared, name).generate_until([instance] * 3) for name in ("base", "a")}
    assert len(set(found["base"])) == 3 and found["base"] != found["a"]
    assert len(shared.known) == 3


def test_writing_ends_at_the_stop_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = _shared(writers("a"), word_tokenizer("$A"))
    shared.adapters = ["a"]
    lm = harness_lm.AdapterLM(shared, "a")
    long = lm._write(["w1 w2"], {"max_gen_toks": 20})["a"][0].split()
    place = next(place for place in range(3, 20) if not any(word.startswith(long[place]) for word in long[:place]))
    asked = []
    holds = lm._holds
    monkeypatch.setattr(lm, "_holds", lambda ids, stops: asked.append(ids) or holds(ids, stops))
    short = lm._write(["w1 w2"], {"max_gen_toks": 20, "until": [long[place]]})["a"]
    assert short == [" ".join(long[:place]) + " "]
    assert len(asked) == place + 1  # no token is written behind it


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_beams": 4}, "num_beams=4"), ({"max_gen_toks": 64}, "40 positions"), ({"top_p": 3}, "top_p")],
)
def test_what_is_not_done_is_said(options: dict[str, Any], words: str) -> None:
    lm = harness_lm.AdapterLM(_shared(writers("a"), word_tokenizer("$A")), "a")
    with pytest.raises(ConfigError, match=words):
        lm._write(["w1"], options)


def test_errors_name_what_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = writers("a")
    with pytest.raises(ConfigError, match="no such folder"):
        run(model, tmp_path / "none", "choices")
    with pytest.raises(ConfigError, match="limit is 0"):
        run(model, folder, "choices", limit=0)
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        run(with_adapters(tiny("bert"), "a"), folder, "choices")
    with pytest.raises(ModelError, match="no language model"):
        run(with_adapters(tiny("t5"), "a"), folder, "choices")
    (tmp_path / "lost.yaml").write_text(f"task: lost\ndataset_path: {tmp_path}/nowhere\noutput_type: generate_until\n")
    with pytest.raises(DataError, match="lost: the task or its data cannot be loaded"):
        benchmark(model, "lost", include=tmp_path, tokenizer=word_tokenizer("$A"))
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: someone/far-away\noutput_type: generate_until\n")
    with pytest.raises(DataError, match="the hub cannot be reached"):
        benchmark(model, "far", include=tmp_path, tokenizer=word_tokenizer("$A"))
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **_: type("", (), {"all_tasks": ["my_choices", "arc_easy"]})
    )
    with pytest.raises(ConfigError, match=r"no task 'arc_esy'; the nearest: arc_easy"):
        benchmark(model, "arc_esy", tokenizer=word_tokenizer("$A"))
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lora-many\\[harness\\]"):
        run(model, folder, "choices")
