"""The real commands: a chat format whose tokens the base does not know, trained, predicted with and merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chat_tokenizer import byte_tokenizer
from command import lora
from lora import describe_data, plan, predict
from lora.config import DataConfig, RunConfig
from lora.errors import ConfigError
from lora.model.vocabulary import extend
from lora.workflow.tuned import load_tuned
from small_base import WORDS, write_jsonl
from tiny_models import tiny

TOKENS = ["<|im_start|>", "<|im_end|>"]
MERGES = [("n", "o"), ("no", "w")]


def fails(*arguments: object) -> str:
    done = lora(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def save(folder: Path, arch: str) -> Path:
    """A base without the tokens of any chat format."""
    tokens = byte_tokenizer(MERGES, extra=[])
    tiny(arch, vocab_size=len(tokens), max_position_embeddings=256).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    turns = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "now"}]} for word in WORDS * 6
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "talk.jsonl", turns)


def train(base: Path, data: Path, output: Path, *more: str) -> None:
    done = lora(
        "train", "--model", base, "--data", data, "--output", output, "--options", "template: chatml",
        "--rank", "8", "--lr", "2e-2", "--epochs", "8", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    train(base, data, output, "--new-tokens", ",".join(TOKENS))
    return output


def test_trained_in_one_process_and_used_in_others(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own = AutoTokenizer.from_pretrained(run / "adapter")
    ids = own.convert_tokens_to_ids(TOKENS)
    assert ids == [len(own) - 2, len(own) - 1]
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": ids, "lm_head": ids}
    # The stop token is one of the new ones: that an answer ends says that it was written.
    done = lora("predict", run, "cat", "dog", "--max-new-tokens", "6")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["completion"] for answer in answers] == ["now", "now"]

    done = lora("merge", run, "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokens.convert_tokens_to_ids(TOKENS) == ids and merged.config.vocab_size == len(own)
    prompt = tokens("<|im_start|>user\ncat<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    with torch.no_grad():
        out = merged.generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=ids[1], pad_token_id=0)
    assert tokens.decode(out[0, prompt["input_ids"].shape[1] :]) == "now<|im_end|>"


def test_on_a_base_whose_embeddings_are_one(data: Path, tmp_path: Path) -> None:
    train(save(tmp_path / "base", "llama-tied"), data, tmp_path / "run", "--new-tokens", ",".join(TOKENS))
    tuned, name, tokenizer, _ = load_tuned(tmp_path / "run")
    assert list(tuned.token_rows(name)) == ["model.embed_tokens"]
    found = predict(tuned, ["cat", "dog"], tokenizer=tokenizer, max_new_tokens=6)
    assert [row["completion"] for row in found] == ["now", "now"]


def test_resumed_and_trained_further(base: Path, run: Path, data: Path, tmp_path: Path) -> None:
    train(base, data, tmp_path / "more", "--start", str(run), "--max-steps", "2", "--no-check")
    assert (tmp_path / "more/adapter/tokenizer.json").is_file()
    assert "<|other|>" in fails(
        "train", "--start", run, "--data", data, "--output", tmp_path / "no", "--new-tokens", "<|other|>"
    )  # fmt: skip
    done = lora("train", "--resume", run)
    assert done.returncode == 0 and "All 56 steps" in done.stderr, done.stderr


def test_the_refusal_names_the_setting(base: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("train", "--model", base, "--data", data, "--output", tmp_path / "no", "--options", "template: chatml")
    assert "add them (new_tokens: ['<|im_start|>', '<|im_end|>'])" in fails(*arguments)
    assert "named twice" in fails(*arguments, "--new-tokens", "<|a|>,<|a|>")


def test_several_adapters_share_the_tokens(base: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "set.yaml"
    file.write_text(
        f"model: {base}\noutput: {tmp_path / 'set'}\nnew_tokens: ['<|im_start|>', '<|im_end|>']\ncheck: false\n"
        f"data: {{train: {data}, options: {{template: chatml}}}}\ntraining: {{max_steps: 2}}\n"
        "adapters: {a: {adapter: {rank: 2}}, b: {adapter: {rank: 3, token_rows: [7]}}}\n"
    )
    done = lora("train", file)
    assert done.returncode == 0, done.stderr
    sizes = {}
    for name in "ab":
        folder = tmp_path / "set" / name / "adapter"
        rows = json.loads((folder / "adapter_config.json").read_text())["trainable_token_indices"]
        sizes[name] = len(rows if isinstance(rows, list) else rows["lm_head"])
        assert (folder / "tokenizer.json").is_file()
    assert sizes == {"a": 2, "b": 3}
    tuned, name, tokenizer, _ = load_tuned(tmp_path / "set" / "b")
    assert tuned.adapters[name].token_rows == [7, *tokenizer.convert_tokens_to_ids(TOKENS)]


def test_plan_and_look_use_the_tokens_of_the_run(base: Path, run: Path, data: Path) -> None:
    """Else a template that writes them would be refused, or its tokens counted letter by letter."""
    options = DataConfig(train=str(data), options={"template": "chatml"}, held_out=0)
    report = describe_data(str(data), str(base), config=options, new_tokens=TOKENS)
    assert [piece.text for piece in report.examples[0].stretches[0].pieces if piece.special] == TOKENS
    gone_on = describe_data(str(data), config=DataConfig(held_out=0), start=run)
    assert gone_on.lengths.tokens.total == report.lengths.tokens.total
    with pytest.raises(ConfigError, match="which training starts from, has no rows for <new>"):
        describe_data(str(data), start=run, new_tokens=["<new>"])
    with pytest.raises(ConfigError, match="does not know as one token"):
        describe_data(str(data), str(base), config=options)
    planned = plan(RunConfig(model=str(base), data=options, new_tokens=TOKENS), search=False)
    assert planned.length == report.lengths.longest
    width = json.loads((base / "config.json").read_text())["hidden_size"]
    assert planned.trainable["single rows"] == 2 * len(TOKENS) * width, "at the entrance and at the head"


def test_a_known_token_stays_what_it_is() -> None:
    tokenizer = byte_tokenizer(MERGES, extra=[])
    before, known = tokenizer("now no")["input_ids"], tokenizer.convert_tokens_to_ids("now")
    ids = extend(tokenizer, ["now", "<a>", "<b c>", " <d>"])
    assert ids == [known, len(tokenizer) - 3, len(tokenizer) - 2, len(tokenizer) - 1]
    assert tokenizer("now no")["input_ids"] == before and "now" not in tokenizer.all_special_tokens
    assert extend(tokenizer, ["<a>"]) == [ids[1]] and tokenizer("<b c>")["input_ids"] == [ids[2]]
    assert tokenizer(" <d>")["input_ids"] == [ids[3]]
    assert extend(tokenizer, []) == []
