"""A model of lm-eval on ours: one adapter's answers, computed for all adapters when the first of them is asked."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lora.config import SamplingConfig
from lora.core.randomness import seed_of
from lora.data.batches import in_order
from lora.errors import ConfigError
from lora.evaluation.decoding import decode
from lora.evaluation.likelihood import score
from lora.evaluation.shared import Shared

ROOM = 2048  # positions of a model that does not say how many it has; lm-eval's own number
NEW_TOKENS = 256  # of a text where the task says nothing; lm-eval's own number
DRAWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
MEANT = {"num_beams": (1,), "use_cache": (True, False)}  # said and settled anyway
SPARE = 4  # tokens looked at beyond a stop text's bytes, for those that stand for no text of their own


class AdapterLM(TemplateLM):  # type: ignore[misc]
    """One adapter as lm-eval asks for it. What several of one `Shared` are asked alike is computed once, for all.

    Texts become tokens as in lm-eval's own model for transformers, with one difference: the end token that some
    tokenizers put behind every text is left out, as nothing follows it.
    """

    def __init__(self, shared: Shared, name: str) -> None:
        super().__init__()
        self.shared, self.name, self.tokenizer = shared, name, shared.tokenizer

    @property
    def eot_token_id(self) -> int:
        found = self.tokenizer.eos_token_id
        if found is None:
            raise ConfigError("the tokenizer has no end token, which stands for an empty text before a continuation")
        return int(found)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = list(self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"])
        prefix = self.shared.frame.prefix
        # A chat template writes the beginning itself.
        return ids if add_special_tokens is False or ids[: len(prefix)] == prefix else prefix + ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        rows = [(before, after) for _, before, after in requests]
        return self.shared.answers(
            self.name, [("loglikelihood", *row) for row in rows], lambda places: self._score([rows[i] for i in places])
        )

    def _score(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, list[tuple[float, bool]]]:
        its = self.shared
        return score(
            its.model, rows, its.adapters, pad_token_id=its.pad_token_id, batch_size=its.batch_size,
            positions=its.positions, on_rows=its.tell,
        )  # fmt: skip

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows = [
            [(None, *make_disjoint_window(window)) for window in self._windows(request.args[0])] for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([window for its in windows for window in its]))
        return [sum(next(scored)[0] for _ in its) for its in windows]

    def _windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        windows: Iterable[tuple[list[int], list[int]]] = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.shared.positions,
            context_len=1,
        )  # fmt: skip
        return windows

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = [(request.args[0], request.args[1]) for request in requests]

        def write(places: list[int]) -> dict[str, list[str]]:
            out: dict[str, list[str]] = {name: [""] * len(places) for name in self.shared.adapters}
            kinds: dict[str, list[int]] = {}  # what is written alike goes together
            for number, place in enumerate(places):
                kinds.setdefault(repr(asked[place][1]), []).append(number)
            for numbers in kinds.values():
                options = asked[places[numbers[0]]][1]
                texts = self._write([asked[places[number]][0] for number in numbers], options)
                for name, its in texts.items():
                    for number, text in zip(numbers, its, strict=True):
                        out[name][number] = text
            return out

        return self.shared.answers(self.name, [("generate_until", *request) for request in asked], write)

    def _write(self, prompts: list[str], options: dict[str, Any]) -> dict[str, list[str]]:
        """What every adapter writes behind ``prompts``."""
        its = self.shared
        sampling, stops = sampling_of(options)
        room = its.positions - sampling.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"the task has texts of {sampling.max_new_tokens} tokens written, and the model has {its.positions} "
                "positions for a prompt and its answer together"
            )
        ids = [self.tok_encode(prompt)[-room:] for prompt in prompts]
        marks = {stop: mark for stop in stops if (mark := self._special(stop)) is not None}
        ends = {name: frozenset([*its.ends[name], *marks.values()]) for name in its.adapters}
        stops = [stop for stop in stops if stop not in marks]
        most = max((len(stop.encode()) for stop in stops), default=0) + SPARE
        rows = [(name, number) for number in range(len(ids)) for name in its.adapters]
        seen: Counter[str] = Counter()
        seeds = []
        for prompt in prompts:  # of the request alone, so alike for every adapter and whatever else is asked
            seeds.append(seed_of("harness", prompt, seen[prompt]))
            seen[prompt] += 1
        out: dict[str, list[str]] = {name: [""] * len(ids) for name in its.adapters}
        left = [len(its.adapters)] * len(ids)  # adapters that have not answered, by prompt
        for indices in in_order([len(ids[number]) for _, number in rows], its.batch_size):
            batch = [rows[index] for index in indices]
            written = decode(
                its.model, [ids[number] for _, number in batch], [name for name, _ in batch],
                [ends[name] for name, _ in batch], sampling, [seeds[number] for _, number in batch],
                pad_token_id=its.pad_token_id,
                finished=(lambda new: self._holds(new[-most:], stops)) if stops else None,
            )  # fmt: skip
            for (name, number), text in zip(batch, written, strict=True):
                out[name][number] = until(self.tokenizer.decode(text.ids, skip_special_tokens=True), stops)
                left[number] -= 1
            its.tell(sum(left[number] == 0 for number in {number for _, number in batch}))
        return out

    def _holds(self, ids: list[int], stops: list[str]) -> bool:
        text = self.tokenizer.decode(ids)
        return any(stop in text for stop in stops)

    def _special(self, text: str) -> int | None:
        """The id of a special token, which ends a text by its id: in the text that is read it does not stand."""
        found = self.tokenizer.get_vocab().get(text)
        return None if found is None or self.tokenizer.decode([found], skip_special_tokens=True) else int(found)


def until(text: str, stops: Iterable[str]) -> str:
    """``text`` up to the first of ``stops``."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def sampling_of(options: Mapping[str, Any]) -> tuple[SamplingConfig, list[str]]:
    """How a task wants its texts written, and the texts that end them. Raises ConfigError for what is not done here."""
    given = dict(normalize_gen_kwargs(copy.deepcopy(dict(options)), NEW_TOKENS))
    stops = [stop for stop in given.pop("until") if stop]
    chosen = {"max_new_tokens": given.pop("max_gen_toks")}
    sampled = given.pop("do_sample", False)
    chosen |= {key: value for key in DRAWN if (value := given.pop(key, None)) is not None}
    chosen["temperature"] = chosen.get("temperature", 1.0) if sampled else 0.0
    unknown = sorted(key for key, value in given.items() if value not in MEANT.get(key, ()))
    if unknown:
        raise ConfigError(
            f"the task's generation_kwargs ask for {', '.join(f'{key}={given[key]!r}' for key in unknown)}, which is "
            f"not done here; known: until, max_gen_toks, do_sample, {', '.join(DRAWN)}"
        )
    return SamplingConfig.make(chosen), stops
