"""Encoder-decoders: tokens of both sides, losses beside transformers' own, whose data they are, training, PEFT."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as hf

from lora import LoRA, evaluate, fit, generate, predict
from lora.chat.session import Session
from lora.config import DataConfig, SamplingConfig, TrainingConfig
from lora.core.variant import variants
from lora.errors import ConfigError, DataError, ModelError
from lora.tasks import from_state
from lora.tasks.inference import collated
from lora.tasks.inputs import task_for
from lora.tasks.recognise import recognise
from lora.tasks.seq2seq import Seq2SeqTask
from lora.workflow import choose, load_several
from small_base import WORDS, stories, tokenizer
from tiny_models import HIDDEN, VOCABULARY, randomise, tiny

TASK = Seq2SeqTask(prompt="prompt", completion="completion")
T5, LLAMA = hf.T5Config(), hf.LlamaConfig()
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip


def model_of(arch: str) -> Any:
    if arch == "t5":
        return tiny("t5")
    torch.manual_seed(0)
    if arch == "bart":
        return hf.BartForConditionalGeneration(hf.BartConfig(**BART)).eval()
    marian = {**BART, "eos_token_id": 0, "pad_token_id": 79, "decoder_start_token_id": 79, "bos_token_id": None}
    return hf.MarianMTModel(hf.MarianConfig(**marian)).eval()


def ids(text: str) -> list[int]:
    return tokenizer("t5")(text)["input_ids"]


def test_source_and_target() -> None:
    row = {"prompt": "red sun", "completion": "cat runs here"}
    encoded = TASK.encode([row], tokenizer("t5"), 16)
    assert encoded.examples == [{"input_ids": ids("red sun"), "row": 0, "labels": ids("cat runs here")}]
    assert ids("red sun")[-1] == 4 and encoded.lengths == [3 + 4] and encoded.supervised == [4]
    assert encoded.answers == ["cat runs here"] and not encoded.notes
    bare = TASK.encode([row], tokenizer("llama"), 16).examples[0]  # which adds nothing by itself
    assert bare["labels"] == ids("cat runs here"), "the end is learned whatever the tokenizer does"
    asked = TASK.encode([{"prompt": "red sun"}], tokenizer("t5"), 16, supervised=False)
    assert asked.examples == [{"input_ids": ids("red sun"), "row": 0}] and not asked.answers
    prefixed = Seq2SeqTask(prompt="prompt", completion="completion", prefix="big ")
    assert prefixed.encode([row], tokenizer("t5"), 16).examples[0]["input_ids"] == ids("big red sun")
    assert prefixed.encode([row], tokenizer("t5"), 16, supervised=False).examples[0]["input_ids"] == ids("big red sun")


def test_sources_are_cut_and_targets_are_not() -> None:
    rows = [
        {"prompt": "red green blue sun moon", "completion": "cat"},
        {"prompt": "red", "completion": "cat dog bird runs"},
        {"prompt": "red", "completion": "cat dog bird"},
    ]
    encoded = TASK.encode(rows, tokenizer("t5"), 4)
    assert [example["row"] for example in encoded.examples] == [0, 2] and encoded.truncated == 2
    assert encoded.examples[0]["input_ids"] == ids("red green blue"), "cut on the right, the end token kept"
    assert encoded.answers == ["cat", "cat dog bird"]
    assert encoded.notes == [
        "1 of 3 rows was longer than 4 tokens with the target alone and was left out: an answer is never cut.",
        "1 of 3 rows was longer than 4 tokens and lost the end of their sources.",
    ]
    both = {"prompt": "red green blue sun moon", "completion": "cat dog bird runs"}
    left_out = TASK.encode([both, rows[2]], tokenizer("t5"), 4)
    assert left_out.truncated == 1 and len(left_out.notes) == 1, "a row that is left out lost no end of its source"
    with pytest.raises(DataError, match="None is left; raise data.max_length"):
        TASK.encode(rows[1:2], tokenizer("t5"), 4)
    with pytest.raises(DataError, match="completion"):
        TASK.encode([{"prompt": "red", "completion": " "}], tokenizer("t5"), 4)


@pytest.mark.parametrize("arch", ["t5", "bart", "marian"])
def test_losses_are_the_models_own(arch: str) -> None:
    model = LoRA(model_of(arch), rank=4)
    randomise(model.adapter_parameters("default").values())
    rows = [{"input_ids": [5, 6, 7, 2][:n], "labels": [9, 8, 2][: n - 1]} for n in (4, 2, 3)]
    batch = collated(model, TASK, rows, model.config.pad_token_id)
    assert batch["labels"].tolist() == [[9, 8, 2], [9, -100, -100], [9, 8, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["decoder_input_ids"].tolist() == model.prepare_decoder_input_ids_from_labels(batch["labels"]).tolist()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        outputs = model(**inputs)
        own = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=batch["labels"])
    sums, counts = TASK.row_losses(outputs, batch)
    assert counts.tolist() == [3, 1, 2]
    assert float(sums.sum() / counts.sum()) == pytest.approx(float(own.loss), rel=1e-5)
    smooth, _ = TASK.row_losses(outputs, batch, label_smoothing=0.2)
    wanted = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.2, reduction="sum"
    )
    assert float(smooth.sum()) == pytest.approx(float(wanted), rel=1e-5)
    found = TASK.metrics(TASK.predictions(outputs, batch), [3, 1, 2], float(sums.sum()), int(counts.sum()))
    right = (outputs.logits.argmax(-1) == batch["labels"]).sum()
    assert found["token_accuracy"] == pytest.approx(int(right) / 6) and found["tokens"] == 6


def table(*names: str) -> list[dict[str, str]]:
    return [{name: f"{name} {number}" for name in names} for number in range(30)]


@pytest.mark.parametrize(
    "names",
    [("source", "target"), ("document", "summary"), ("text", "summary"), ("article", "highlights"),
     ("input", "output"), ("prompt", "completion"), ("question", "answer")],
)  # fmt: skip
def test_the_base_says_which_of_two_tasks_is_meant(names: tuple[str, str]) -> None:
    roles = dict(zip(("prompt", "completion"), names, strict=True))
    for base, task in ((T5, "seq2seq"), (hf.BartConfig(), "seq2seq"), (LLAMA, "causal"), (None, "causal")):
        found = recognise(table(*names), DataConfig(), base)
        assert (found.task, found.roles) == (task, roles)


def test_what_else_the_columns_may_say() -> None:
    found = recognise(table("instruction", "input", "output"), DataConfig(), T5)
    assert found.roles == {"prompt": "instruction", "context": "input", "completion": "output"}
    assert recognise(table("mr", "ref"), DataConfig(prompt_column="mr", completion_column="ref"), T5).task == "seq2seq"
    labels = [row | {"label": "ab"[number % 2]} for number, row in enumerate(table("text"))]
    assert recognise(labels, DataConfig(), T5).task == "classification", "of which an encoder-decoder is capable"
    for config in (DataConfig(), DataConfig(task="seq2seq")):
        with pytest.raises(DataError, match="learns what to write for it: name that with data.completion_column"):
            recognise(table("text"), config, T5)
    assert recognise(table("text"), DataConfig(), LLAMA).task == "causal"
    assert recognise(table("text", "summary"), DataConfig(task="seq2seq"), None).task == "seq2seq"


def test_options_are_kept_with_the_task() -> None:
    task, _ = task_for(table("text", "summary"), DataConfig(options={"prefix": "summarize: "}), T5)
    assert isinstance(task, Seq2SeqTask) and task.settings.prefix == "summarize: "
    assert from_state(task.state()).state() == task.state()
    with pytest.raises(ConfigError, match="prefx"):
        task_for(table("text", "summary"), DataConfig(options={"prefx": "x"}), T5)


def first_words(count: int) -> list[dict[str, str]]:
    """Rows whose target is the source's first word."""
    return [{"source": row["prompt"], "target": row["prompt"].split()[0]} for row in stories(count)]


def test_fit_does_the_right_thing_by_itself(t5: Any, tmp_path: Any) -> None:
    base = hf.AutoModelForSeq2SeqLM.from_pretrained(t5)
    model = LoRA(base, rank=16)
    rows = first_words(200)
    result = fit(
        model, rows, output_dir=tmp_path / "run", learning_rate=2e-2, epochs=6, batch_size=8, progress=False,
        data=DataConfig(options={"prefix": "here "}),
    )  # fmt: skip
    assert isinstance(result.data.task, Seq2SeqTask) and result.best_metric == "loss"
    assert not any("Rows are padded" in note for note in result.notes), "padding is not what is amiss here"
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    found = evaluate(model, rows[:50], latency=False, generate=True, max_new_tokens=4)
    assert found["default"]["loss"] < found["base"]["loss"]
    assert found["default"]["exact_match"] > found["base"]["exact_match"]
    other = LoRA(hf.AutoModelForSeq2SeqLM.from_pretrained(t5), name=None)
    other.load_adapter(tmp_path / "run" / "adapter", "tuned")
    assert other.notes["tuned"]["task"]["prefix"] == "here "
    wanted = [answer["answers"]["default"] for answer in found.generation.answers] if found.generation else []
    said = predict(other, [answer["source"] for answer in rows[:50]], max_new_tokens=4, batch_size=7)
    prompts = list(dict.fromkeys(row["source"] for row in rows[:50]))
    by_prompt = {row["prompt"]: row["completion"] for row in said}
    assert [by_prompt[prompt] for prompt in prompts] == wanted


@pytest.mark.parametrize("arch", ["t5", "bart"])
def test_answers_one_by_one(arch: str) -> None:
    """Whatever stands beside a prompt, and with no prompt at the beginning of the answer."""
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=_numbers(), pad_token="1" if arch == "bart" else "0", eos_token="2" if arch == "bart" else "1"
    )
    model = LoRA(model_of(arch), rank=4)
    randomise(model.adapter_parameters("default").values())
    prompts = ["5 6 7", "9", "11 12 13 14 15"]
    found = predict(model, prompts, task=TASK, tokenizer=words, max_new_tokens=6, batch_size=3)
    for prompt, answer in zip(prompts, found, strict=True):
        given = torch.tensor([words(prompt)["input_ids"]])
        with torch.no_grad(), model.using("default"):
            out = model.generate(input_ids=given, max_new_tokens=6, do_sample=False, num_beams=1)[0]
        assert answer == {"prompt": prompt, "completion": words.decode(out, skip_special_tokens=True)}
    texts = generate(
        model, prompts, adapters=["default", "base"], tasks={"default": TASK}, tokenizer=words, max_new_tokens=6,
        batch_size=4,
    )  # fmt: skip
    assert [text["completion"] for text in texts[::2]] == [answer["completion"] for answer in found]
    drawn = [
        generate(model, prompts, tasks={"default": TASK}, tokenizer=words, max_new_tokens=6, temperature=1.5,
                 repetition_penalty=1.2, batch_size=size)
        for size in (1, 3)
    ]  # fmt: skip
    assert drawn[0] == drawn[1], "what is drawn does not depend on the batch"
    assert len({answer["completion"] for answer in found}) > 1


def test_generating_and_talking(t5: Any, tmp_path: Any) -> None:
    """An adapter of an encoder-decoder and its base, as the commands load them."""
    model = LoRA(hf.AutoModelForSeq2SeqLM.from_pretrained(t5), name="a")
    randomise(model.adapter_parameters("a").values())
    model.notes["a"] = {"task": TASK.state(), "training": {"dtype": "float32"}}
    folder = model.save_adapter("a", tmp_path / "a")
    loaded = load_several(choose([str(folder), "base"], [], str(t5)), chat=True)
    options: dict[str, Any] = {"tokenizer": loaded.tokenizer, "max_new_tokens": 5}
    texts = generate(loaded.model, ["red sun", "cat"], adapters=loaded.names, tasks=loaded.tasks, **options)
    wanted = predict(loaded.model, ["red sun", "cat"], adapter="a", **options)
    assert [text["completion"] for text in texts[::2]] == [answer["completion"] for answer in wanted]
    assert {text["adapter"] for text in texts} == {"a", "base"}
    session, pieces = Session(loaded, SamplingConfig(max_new_tokens=5)), list[str]()
    for prompt, text in zip(("red sun", "cat"), texts[::2], strict=True):
        pieces.clear()
        answer = session.ask(prompt, pieces.append)
        assert answer.text == "".join(pieces) == text["completion"] and answer.kept == 0
    compared = session.compare(["a", "base"], "cat")
    assert [answer.text for answer in compared] == [text["completion"] for text in texts[2:]]
    bare = load_several(choose([str(t5)], [], None), chat=True)
    assert isinstance(bare.tasks["base"], Seq2SeqTask) and not bare.notes


def _numbers() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core


@pytest.mark.parametrize("variant", sorted(variants()))
def test_peft_reads_the_saved_folder(variant: str, t5: Any, tmp_path: Any) -> None:
    model = LoRA(hf.AutoModelForSeq2SeqLM.from_pretrained(t5), name=None)
    rows = stories(16)
    model.add_adapter("default", rank=3, variant=variant, seed=1)
    fit(model, rows, False, output_dir=tmp_path, learning_rate=1e-2, max_steps=3, progress=False)
    theirs = peft.PeftModel.from_pretrained(hf.AutoModelForSeq2SeqLM.from_pretrained(t5), tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert isinstance(theirs, peft.PeftModelForSeq2SeqLM)
    encoded = TASK.encode(rows, tokenizer("t5"), 32)
    batch = collated(model, TASK, encoded.examples, 0)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        ours, base = model(**inputs).logits, model(**inputs, adapters=["base"] * len(rows)).logits
        assert torch.allclose(ours, theirs(**inputs).logits, atol=1e-5)
    assert not torch.allclose(ours, base, atol=1e-3)


def test_a_base_of_the_other_kind_is_refused(llama: Any, t5: Any) -> None:
    rows = stories(16)
    decoder = LoRA(hf.AutoModelForCausalLM.from_pretrained(llama), rank=2)
    with pytest.raises(ModelError, match="needs a model loaded with AutoModelForSeq2SeqLM, and this one is a LlamaFor"):
        fit(decoder, rows, data=DataConfig(task="seq2seq"), max_steps=1, progress=False)
    both = LoRA(hf.AutoModelForSeq2SeqLM.from_pretrained(t5), rank=2)
    with pytest.raises(ModelError, match="needs a model loaded with AutoModelForCausalLM"):
        fit(both, rows, data=DataConfig(task="causal"), max_steps=1, progress=False)
    classifier = LoRA(hf.AutoModelForSequenceClassification.from_pretrained(t5), rank=2)
    with pytest.raises(ModelError, match="AutoModelForSeq2SeqLM, and this one is a T5ForSequenceClassification"):
        fit(classifier, rows, max_steps=1, progress=False)


def test_memory_counts_the_tokens_of_both_sides(t5: Any, tmp_path: Any) -> None:
    from lora.training.begin import Entrance
    from lora.training.job import Job
    from lora.training.memory import largest_batch, measure
    from lora.training.processes import Processes

    model = LoRA(hf.AutoModelForSeq2SeqLM.from_pretrained(t5), rank=2)
    rows = [{"prompt": " ".join(WORDS[:5]), "completion": " ".join(WORDS[:9])}] * 8
    entrance = Entrance(
        model, Processes(), several=False, common=TrainingConfig(batch_size=4, learning_rate=1e-3), data=DataConfig(),
        tokenizer=None, evaluate=None, output_dir=None, resume=False, overwrite=False, compile=False, liger=False,
    )  # fmt: skip
    participants, passes = entrance.enter({"default": Job(rows, False)})
    tokens, _ = largest_batch(participants[0])
    share = passes.next_share(participants[0].trainee, participants[0].prepared, False)
    assert share is not None and tokens == share.tokens == 4 * (6 + 10)
    assert measure(passes, share).tokens == share.tokens
