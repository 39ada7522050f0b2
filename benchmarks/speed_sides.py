"""The sides of a measurement of speed: ours by the real `fit`, PEFT by hand, Trainer, TRL, the bare model.

Each side trains the same adapter from the same start at every `run`, and says how long the steps after the first took:
the first carries set-up (the packing probe, a calibration, caches) and, in our order of batches, the largest batch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lora import LoRA, TrainingConfig, fit
from lora.core.attention import per_document
from lora.data.batches import BatchPlan
from lora.training.job import Job
from lora.training.packing import Packing
from lora.training.prepare import Prepared

RANK, ALPHA, RATE = 16, 32, 1e-4
CLOCK = [time.perf_counter]  # or time.process_time, with one thread: what other jobs take is then not counted


def now() -> float:
    return CLOCK[0]()


@dataclass
class Timed:
    """Tokens (padding left out) and seconds of all steps but the first; mean loss of all steps."""

    tokens: int
    seconds: float
    loss: float

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


class Ours:
    """`fit` with one adapter for each of ``data``. Steps are timed where `fit` calls for an evaluation: after each."""

    def __init__(
        self, base: torch.nn.Module, data: Sequence[Prepared], batch: int, at_once: int | None = None, rank: int = RANK,
        compile: bool = False,
    ) -> None:  # fmt: skip
        self.batch, self.at_once, self.compile = batch, at_once, compile
        self.data = {f"adapter{number}": prepared for number, prepared in enumerate(data)}
        self.model = LoRA(base, name=None)
        for name in self.data:
            self.model.add_adapter(name, **_adapter(base, rank))
        self.start = {
            name: {key: p.detach().clone() for key, p in self.model.adapter_parameters(name).items()}
            for name in self.data
        }
        self.notes: list[str] = []

    def run(self, steps: int) -> Timed:
        with torch.no_grad():
            for name, values in self.start.items():
                for key, parameter in self.model.adapter_parameters(name).items():
                    parameter.copy_(values[key])
        events: list[tuple[float, str, int]] = []
        done = dict.fromkeys(self.data, 0)

        def clock(model: LoRA, adapter: str) -> dict[str, float]:
            done[adapter] += 1
            events.append((now(), adapter, done[adapter]))
            return {"loss": 0.0}

        config = TrainingConfig(
            learning_rate=RATE, batch_size=self.batch, max_steps=steps, epochs=1000, schedule="constant",
            warmup_ratio=0, eval_every=1, save_every=None, best_metric="loss", tensorboard=False,
        )  # fmt: skip
        if len(self.data) == 1:
            ((name, prepared),) = self.data.items()
            found: Any = fit(
                self.model, [], prepared=prepared, adapter=name, evaluate=clock, config=config, compile=self.compile,
                progress=False,
            )  # fmt: skip
            results = {name: found}
        else:
            jobs = {name: Job(prepared=prepared, evaluate=clock) for name, prepared in self.data.items()}
            results = fit(self.model, jobs, config=config, at_once=self.at_once, compile=self.compile, progress=False)
        self.notes = next(iter(results.values())).notes
        lines = {
            (name, line["step"]): line
            for name, r in results.items()
            for line in r.history
            if "tokens_per_second" in line
        }
        # From the end of the first round: the last first step before any second one.
        later = next(place for place, (_, _, step) in enumerate(events) if step == 2)
        tokens = sum(lines[name, step]["tokens"] for _, name, step in events[later:])
        loss = statistics.mean(line["loss"] for line in lines.values())
        return Timed(tokens, events[-1][0] - events[later - 1][0], loss)


class Peft:
    """PEFT in a loop written by hand, on the very batches that ours takes, grouped by length as ours are.

    The adapter is read by PEFT from the folder that ours writes, so both start alike.

    Args:
        autocast: products in bf16 on parameters in fp32, and PEFT told not to cast activations up by itself; what ours
            does. Else PEFT's default: the adapter's part in fp32, activations cast up and down.
        labelled: compute the head where a token has a label only, three lines by hand; else the model's own loss.
        half: adapters in bf16 too: fastest, though small steps are lost to rounding.
    """

    def __init__(
        self, base: torch.nn.Module, data: Sequence[Prepared], batch: int, autocast: bool = False,
        labelled: bool = False, half: bool = False, rank: int = RANK,
    ) -> None:  # fmt: skip
        self.data, self.batch, self.autocast, self.labelled = data, batch, autocast, labelled
        self.model = peft_model(base, rank, half)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]

    def run(self, steps: int) -> Timed:
        timed = [self._run(prepared, steps) for prepared in self.data]
        return Timed(
            sum(t.tokens for t in timed), sum(t.seconds for t in timed), statistics.mean(t.loss for t in timed)
        )

    def _run(self, prepared: Prepared, steps: int) -> Timed:
        from peft.helpers import disable_input_dtype_casting

        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.copy_(value)
        optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0)
        self.model.train()
        losses, ends, tokens = [], [now()], []
        with disable_input_dtype_casting(self.model, active=self.autocast):
            for examples in batches(prepared, self.batch, steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    loss = self._loss(prepared.task.collate(examples, prepared.pad_token_id))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
                tokens.append(sum(len(example["input_ids"]) for example in examples))
                ends.append(now())
        return Timed(sum(tokens[1:]), ends[-1] - ends[1], statistics.mean(losses))

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self.labelled:
            return self.model(**batch).loss
        causal = self.model.get_base_model()
        labels = batch.pop("labels")[:, 1:]
        chosen = labels != -100
        hidden = causal.model(**batch).last_hidden_state[:, :-1][chosen]
        return F.cross_entropy(causal.lm_head(hidden).float(), labels[chosen])


class Trainer:
    """PEFT under transformers.Trainer, on our batches in our order."""

    def __init__(self, base: torch.nn.Module, data: Sequence[Prepared], batch: int, rank: int = RANK) -> None:
        (self.prepared,) = data
        self.batch = batch
        self.model = peft_model(base, rank, False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]

    def run(self, steps: int) -> Timed:
        import transformers

        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.copy_(value)
        prepared, taken = self.prepared, batches(self.prepared, self.batch, steps)
        with tempfile.TemporaryDirectory() as output:
            trainer = transformers.Trainer(
                model=self.model,
                args=transformers.TrainingArguments(**arguments(output, steps, self.batch, "sequential")),
                train_dataset=[example for examples in taken for example in examples],
                data_collator=lambda examples: prepared.task.collate(examples, prepared.pad_token_id),
            )
            ends, loss = timed_steps(trainer)
        tokens = [sum(len(example["input_ids"]) for example in examples) for examples in taken]
        return Timed(sum(tokens[1:]), ends[-1] - ends[0], loss)


class Trl:
    """TRL's SFTTrainer with packing into rows of 1024 tokens, attention within documents by position ids."""

    def __init__(self, base: torch.nn.Module, data: Sequence[Prepared], batch: int, autocast: bool = False) -> None:
        from datasets import Dataset

        (self.prepared,) = data
        self.autocast = autocast
        self.model = peft_model(base, RANK, False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]
        keys = ("input_ids", "labels")
        self.rows = Dataset.from_list([{key: e[key] for key in keys} for e in self.prepared.train.examples])

    def run(self, steps: int) -> Timed:
        from trl import SFTConfig, SFTTrainer

        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.copy_(value)
        with tempfile.TemporaryDirectory() as output:
            options = arguments(output, steps, 1, "sequential") | {"bf16": self.autocast}
            config = SFTConfig(**options, packing=True, max_length=1024, gradient_checkpointing=False)
            trainer = SFTTrainer(
                self.model, args=config, train_dataset=self.rows, processing_class=self.prepared.tokenizer
            )
            seen: list[int] = []
            collate = trainer.data_collator

            def counting(rows: list[Any]) -> Any:
                out = collate(rows)
                seen.append(out["input_ids"].numel())
                return out

            trainer.data_collator = counting
            ends, loss = timed_steps(trainer)
        return Timed(sum(seen[1:steps]), ends[-1] - ends[0], loss)


class Floor:
    """The frozen model alone, in our packing: its forward, its loss and the gradient of its input embeddings."""

    def __init__(self, base: torch.nn.Module, data: Sequence[Prepared], batch: int) -> None:
        (self.prepared,) = data
        self.batch = batch
        self.model = LoRA(base, name=None)
        embed: Any = base.get_input_embeddings()  # type: ignore[operator]
        embed.register_forward_hook(lambda module, inputs, output: output.requires_grad_())

    def run(self, steps: int) -> Timed:
        packing = Packing(self.model)
        losses, ends, tokens = [], [now()], []
        self.model.train()
        for examples in batches(self.prepared, self.batch, steps):
            count = sum(label != -100 for example in examples for label in example["labels"][1:])
            with per_document(self.model.base):
                loss = packing.losses([examples], ["base"], None, [0.0])[0].sum() / count
                loss.backward()
            losses.append(float(loss.detach()))
            tokens.append(sum(len(example["input_ids"]) for example in examples))
            ends.append(now())
        return Timed(sum(tokens[1:]), ends[-1] - ends[1], statistics.mean(losses))


def batches(prepared: Prepared, batch: int, steps: int) -> list[list[dict[str, Any]]]:
    """The examples of the first ``steps`` batches, those that `fit` takes."""
    plan = BatchPlan(prepared.train.lengths, batch, TrainingConfig().seed)
    assert steps < len(plan), "within one epoch"
    return [[prepared.train.examples[i] for i in rows] for rows in plan.epoch(0)[:steps]]


def _adapter(base: torch.nn.Module, rank: int) -> dict[str, Any]:
    """Settings of every side's adapter. Where a layer is narrower than the rank, its width is the rank."""
    width = getattr(base.config, "num_key_value_heads", 0) * getattr(base.config, "head_dim", 0)
    narrow = {"rank_pattern": {"k_proj": width, "v_proj": width}} if 0 < width < rank else {}
    return {"rank": rank, "alpha": ALPHA, "seed": 0, **narrow}


def peft_model(base: torch.nn.Module, rank: int, half: bool) -> Any:
    """Real PEFT on ``base``, with the adapter that ours begins with."""
    from peft import PeftModel

    ours = LoRA(base, name=None)
    ours.add_adapter("adapter0", **_adapter(base, rank))
    with tempfile.TemporaryDirectory() as folder:
        ours.save_adapter("adapter0", folder + "/adapter")
        base = ours.unload()
        return PeftModel.from_pretrained(
            base, folder + "/adapter", is_trainable=True, autocast_adapter_dtype=not half, torch_device="cpu"
        )


def arguments(output: str, steps: int, batch: int, order: str) -> dict[str, Any]:
    """What Trainer is told: as ours, and nothing that costs time."""
    return dict(
        output_dir=output, max_steps=steps, per_device_train_batch_size=batch, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, train_sampling_strategy=order,
        save_strategy="no", logging_steps=steps, report_to=[], disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, remove_unused_columns=False, bf16=False,
    )  # fmt: skip


def timed_steps(trainer: Any) -> tuple[list[float], float]:
    """Train; when each step ended, and the mean loss of all."""
    import transformers

    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(now())

    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(Clock())
    trainer.train()
    return ends, next(line["loss"] for line in trainer.state.log_history if "loss" in line)
