"""One batch of prompts to tokens: each row through its own adapter, to its own end, with its own random numbers.

A decoder goes on behind its prompt, so prompts are padded on the left; an encoder-decoder writes a text of its own.
Whatever writes text does it by `decode`, so that the same prompt gives the same text everywhere.

Shapes: b row, t token, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lora.config import SamplingConfig
from lora.core.configs import is_encoder_decoder
from lora.errors import ConfigError, RoutingError
from lora.model.base import positions_of
from lora.tasks.inference import evaluating, to_device
from lora.tasks.sequence import padded_ids

if TYPE_CHECKING:
    from lora.model.lora import LoRA

# How the likeliest tokens are written one after another.
GREEDY = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "early_stopping": False, "length_penalty": 1.0}
# What a checkpoint's own generation settings say of the model itself, and not of how somebody liked its texts best.
OF_THE_MODEL = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "transformers_version")


@dataclass(frozen=True)
class Written:
    """What was written behind one prompt.

    Attributes:
        ids: token ids, without the one that ended it.
        stop: ``end`` (an end token), ``length`` (no room for more) or ``stopped`` (by the caller).
    """

    ids: list[int]
    stop: str


@torch.no_grad()
def decode(
    model: LoRA,
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[str],
    ends: Sequence[Collection[int]],
    sampling: SamplingConfig,
    seeds: Sequence[int],
    *,
    pad_token_id: int,
    cache: Any = None,
    on_token: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    finished: Callable[[list[int]], bool] | None = None,
    **options: Any,
) -> list[Written]:
    """Write behind every prompt, or what an encoder-decoder has to say to it. Nothing that a checkpoint's own
    generation settings carry is in force: a penalty among them would make training and evaluation look worse.

    Args:
        adapters, ends, seeds: of each row: its adapter, the tokens that end it, the seed of what is drawn for it. A
            row's draws depend on its own seed alone, whatever else is in the batch.
        sampling: fewer tokens are written where the model has no more positions behind the longest prompt.
        cache: keys and values of the beginning of the prompt (of one row); it is filled further.
        on_token: called with row and token as each is written, those that end the rows included.
        stop: asked after every token; true: leave it at what there is.
        finished: asked after every token with all that a row has of its own; true: the row is left at that. What
            stands behind it in the row's ids is padding.
        options: of transformers' ``generate``, in place of what ``sampling`` says.

    Raises ConfigError: options that ask for several texts to a prompt.
    """
    if len(set(adapters)) > 1:
        try:
            return _together(
                model, prompts, adapters, ends, sampling, seeds, pad_token_id, on_token=on_token, stop=stop,
                finished=finished, **options,
            )  # fmt: skip
        except RoutingError:  # a base whose rows cannot be told apart: one adapter after another, more slowly
            out: list[Written | None] = [None] * len(prompts)
            for name in dict.fromkeys(adapters):
                rows = [row for row, its in enumerate(adapters) if its == name]
                found = _together(
                    model, [prompts[row] for row in rows], [name] * len(rows), [ends[row] for row in rows], sampling,
                    [seeds[row] for row in rows], pad_token_id, stop=stop, finished=finished,
                    on_token=_of(rows, on_token), **options,
                )  # fmt: skip
                for row, its in zip(rows, found, strict=True):
                    out[row] = its
            return [written for written in out if written is not None]
    return _together(
        model, prompts, adapters, ends, sampling, seeds, pad_token_id, cache=cache, on_token=on_token, stop=stop,
        finished=finished, **options,
    )  # fmt: skip


def _of(rows: list[int], on_token: Callable[[int, int], None] | None) -> Callable[[int, int], None] | None:
    return None if on_token is None else lambda row, token: on_token(rows[row], token)


def _together(
    model: LoRA, prompts: Sequence[Sequence[int]], adapters: Sequence[str], ends: Sequence[Collection[int]],
    sampling: SamplingConfig, seeds: Sequence[int], pad_token_id: int, *, cache: Any = None,
    on_token: Callable[[int, int], None] | None = None, stop: Callable[[], bool] | None = None,
    finished: Callable[[list[int]], bool] | None = None, **options: Any,
) -> list[Written]:  # fmt: skip
    apart = is_encoder_decoder(model.base.config)  # the prompt is the encoder's, and not repeated in the output
    batch = padded_ids([list(prompt) for prompt in prompts], pad_token_id, "right" if apart else "left")
    width = 1 if apart else batch["input_ids"].shape[1]  # a decoder begins with a token of its own
    padding = [0 if apart else width - len(prompt) for prompt in prompts]
    positions = positions_of(model.base)
    most = min(sampling.max_new_tokens, positions - width) if positions else sampling.max_new_tokens
    common = set(ends[0]).intersection(*ends)
    criteria = StoppingCriteriaList()
    if stop is not None or finished is not None or any(common != set(its) for its in ends):
        criteria.append(_RowsEnd(ends, stop, finished, width))
    if cache is not None:
        options |= {"past_key_values": cache, "cache_implementation": None}
    with evaluating(model):
        found = model.generate(
            **to_device(batch, model), adapters=list(adapters),
            **{
                **_unset(model.base), **GREEDY, "max_new_tokens": most, "pad_token_id": pad_token_id,
                "eos_token_id": sorted(common) or None, "use_cache": True, **options,
            },
            logits_processor=_processors(sampling, padding, width, seeds, most), stopping_criteria=criteria,
            streamer=_Tokens(on_token, ends) if on_token else None,
        )  # fmt: skip
    if len(found) != len(prompts):
        raise ConfigError("one text per prompt is given back; leave num_return_sequences out")
    return [_cut(ids, its, most) for ids, its in zip(found[:, width:].tolist(), ends, strict=True)]


def _unset(base: Any) -> dict[str, None]:
    """The checkpoint's own generation settings as options that take them back, but for those `OF_THE_MODEL`."""
    own = getattr(base, "generation_config", None)
    given = {} if own is None else own.to_dict()
    known = GenerationConfig().to_dict()  # what else there is belongs to the code of the model
    return {key: None for key in known if given.get(key) is not None and key not in OF_THE_MODEL}


def _cut(ids: list[int], ends: Collection[int], most: int) -> Written:
    # Cut, not filtered: behind the end stands padding, and the padding token may be an ordinary one.
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    if place is not None:
        return Written(ids[:place], "end")
    return Written(ids, "length" if len(ids) >= most else "stopped")


class _RowsEnd(StoppingCriteria):
    """Each row ends at its own tokens: adapters of one batch may have been trained in different formats."""

    eos_token_id = None  # transformers fills finished rows with padding where a criterion has this attribute

    def __init__(
        self, ends: Sequence[Collection[int]], stop: Callable[[], bool] | None,
        finished: Callable[[list[int]], bool] | None, width: int,
    ) -> None:  # fmt: skip
        self.ends, self.stop, self.finished, self.width = ends, stop, finished, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if self.stop is not None and self.stop():
            return torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        last = input_ids[:, -1].tolist()
        done = [token in ends for token, ends in zip(last, self.ends, strict=True)]
        if self.finished is not None:
            written = input_ids[:, self.width :].tolist()
            done = [ended or self.finished(ids) for ended, ids in zip(done, written, strict=True)]
        return torch.tensor(done, device=input_ids.device)


class _Tokens(BaseStreamer):
    """Hands on each row's tokens up to its end, without the prompts, which transformers gives first."""

    def __init__(self, on_token: Callable[[int, int], None], ends: Sequence[Collection[int]]) -> None:
        self.on_token, self.ends, self.begun = on_token, ends, False
        self.open = set(range(len(ends)))

    def put(self, value: Tensor) -> None:
        if self.begun:
            for row, token in enumerate(value.flatten().tolist()):
                if row in self.open:
                    self.open -= {row} if token in self.ends[row] else set()
                    self.on_token(row, token)
        self.begun = True

    def end(self) -> None:
        pass


def _processors(
    sampling: SamplingConfig, padding: Sequence[int], width: int, seeds: Sequence[int], steps: int
) -> LogitsProcessorList:
    """What is done to scores (b, v) before the highest is taken; the last of it leaves the token that was drawn."""
    chain: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        chain.append(_RepetitionPenalty(sampling.repetition_penalty, padding))
    if sampling.temperature:
        if sampling.temperature != 1:
            chain.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            chain.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            chain.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            chain.append(MinPLogitsWarper(sampling.min_p))
        chain.append(_Draw(seeds, width, steps))
    return LogitsProcessorList(chain)


class _RepetitionPenalty(RepetitionPenaltyLogitsProcessor):
    """transformers' (CTRL, arXiv:1909.05858, section 4.1), which would take padding for a part of the prompt: what a
    row is given would depend on how long its neighbours are."""

    def __init__(self, penalty: float, padding: Sequence[int]) -> None:
        super().__init__(penalty)
        self.padding = torch.tensor(padding).unsqueeze(1)  # (b, 1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        padded = torch.arange(input_ids.shape[1]).unsqueeze(0) < self.padding
        # The last token stands in the row anyway.
        ids = torch.where(padded.to(input_ids.device), input_ids[:, -1:], input_ids)
        return super().__call__(ids, scores)  # type: ignore[arg-type]


class _Draw(LogitsProcessor):
    """Draws by the inverse of the cumulative distribution, one uniform number for each row and token.

    `torch.multinomial` draws a batch from one stream: what a row is given would depend on its neighbours.
    """

    def __init__(self, seeds: Sequence[int], width: int, steps: int) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.draws = torch.stack([torch.rand(steps, generator=stream, dtype=torch.float64) for stream in streams])
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        exact = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no more
        drawn = self.draws[:, input_ids.shape[1] - self.width].to(scores.device, exact).unsqueeze(1)  # (b, 1)
        cumulative = scores.to(exact).softmax(dim=-1).cumsum(dim=-1)
        token = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
