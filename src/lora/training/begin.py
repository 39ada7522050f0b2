"""What comes before training: everything is read and checked, adapters are made, and everybody is ready to begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lora.config import AdapterConfig, DataConfig, TrainingConfig
from lora.errors import ConfigError
from lora.io.run import RunFolder
from lora.model.heads import draw_new, task_heads
from lora.model.kernels import choose
from lora.model.targets import find_targets
from lora.model.token_rows import places_of_rows
from lora.training.job import Evaluate, Job, named_errors
from lora.training.participant import Participant
from lora.training.passes import Passes
from lora.training.prepare import prepare, read_rows
from lora.training.processes import Processes
from lora.training.schedule import default_learning_rate

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@dataclass(frozen=True)
class Entrance:
    """How adapters come in: what those of one `fit` have in common, arguments as there.

    Attributes:
        several: whether each has a folder of its own in ``output_dir``, and is named in errors.
    """

    model: LoRA
    processes: Processes
    several: bool
    common: TrainingConfig
    data: DataConfig
    tokenizer: Any
    evaluate: Evaluate | None
    output_dir: str | Path | None
    resume: bool
    overwrite: bool
    compile: bool
    liger: bool

    def make(self, name: str, job: Job) -> Participant:
        """A participant for ``job``, whose data are read and whose adapter is made.

        Raises:
            ConfigError, DataError, ModelError: something is wrong; nothing has been written or replaced.
        """
        model = self.model
        with named_errors(name if self.several else None):
            run = self._folder(name)
            s = job.settings(name, self.common)
            evaluation = job.evaluate or self.evaluate
            if job.prepared is None:
                held = False if evaluation is not None and job.eval_data is None else job.eval_data
                columns = job.data_settings(name, self.data)
                rows = read_rows(
                    job.data if job.data is not None else [], held, columns, s.seed, job.task,
                    getattr(model.base, "config", None),
                )  # fmt: skip
                job.prepared = prepare(model, rows, self.tokenizer, columns.max_length)
            job.prepared.task.check_smoothing(s.label_smoothing)
            _place(model, name, job, s.seed)
            if s.learning_rate is None:
                base_config = getattr(model.base, "config", None)
                s.learning_rate = default_learning_rate(base_config, model.adapters[name].full)
            return Participant(model, name, job.prepared, s, self.processes, run, evaluation)

    def _folder(self, name: str) -> RunFolder | None:
        if self.output_dir is None:
            return None
        make = RunFolder.of_a_set if self.several else RunFolder
        place = Path(self.output_dir)
        return make(place / name if self.several else place, resume=self.resume, overwrite=self.overwrite)

    def passes(self) -> Passes:
        """What runs the passes of all of them."""
        return Passes(self.model, choose(self.processes.device, self.compile, self.liger))

    def ready(self, participant: Participant, passes: Passes) -> None:
        """The last that can be complained of before it trains. Raises ConfigError, ModelError, TrainingError."""
        participant.prepare(self.resume, self.compile, self.liger)
        why = passes.why_padded(participant.trainee, participant.prepared)
        participant.packed = why is None
        if why and participant.settings.packing is None and participant.prepared.task.next_token:
            participant.notes.append(f"Rows are padded, which is slower: {why}.")

    def enter(self, jobs: Mapping[str, Job]) -> tuple[list[Participant], Passes]:
        """A participant for each of ``jobs``, ready, and what runs their passes. Raises as `make` and `ready`."""
        participants = [self.make(name, job) for name, job in jobs.items()]
        self.processes.wait()  # every process has looked before the first one writes
        self.model.to(self.processes.device)
        passes = self.passes()
        for participant in participants:
            self.ready(participant, passes)
        return participants, passes


@contextmanager
def as_before(model: LoRA) -> Iterator[None]:
    """Take adapters made in the block off again where it fails."""
    before = set(model.adapters)
    try:
        yield
    except BaseException:
        for name in [name for name in model.adapters if name not in before]:
            model.remove_adapter(name)
        raise


def _place(model: LoRA, name: str, job: Job, seed: int) -> None:
    """Make the adapter of ``job`` where the model does not have it, with a head for the labels of its data.

    Raises:
        ConfigError: the model has an adapter of that name with other settings, or a head that is too narrow.
    """
    assert job.prepared is not None, "its data have been read"
    labels = job.prepared.task.model_options().get("num_labels")
    if name not in model.adapters:
        model.add_adapter(name, job.adapter_settings(name), seed=seed)
        draw_new(model.base, model.owned(name), seed, labels)
    elif job.adapter is not None and _differs(model, name, job.adapter_settings(name)):
        raise ConfigError(
            f"adapters.{name}: the model already has an adapter of that name with other settings; remove it first "
            f"(model.remove_adapter({name!r})), or leave adapter= out to train it on"
        )
    outputs = [
        layer.out_features for m in model.owned(name).values() for layer in m.modules() if isinstance(layer, nn.Linear)
    ]
    has_head = bool(outputs) or bool(task_heads(model.base))  # what has none is found out with the first row
    width = max([getattr(model.base.config, "num_labels", 0), *outputs]) if hasattr(model.base, "config") else None
    if has_head and labels is not None and width is not None and width < labels:
        raise ConfigError(
            f"{name}: its data have {labels} labels and its head {width} outputs; load the base with "
            f"num_labels={labels}"
        )


def _differs(model: LoRA, name: str, asked: AdapterConfig) -> bool:
    """Whether adapter ``name`` is another than one made as ``asked`` would be, small layers' ranks included."""
    asked = asked.model_copy(deep=True)  # the caller's own
    report = find_targets(model.base, asked, list(model.owned(name)))
    places_of_rows(model.base, asked, report, list(model.owned(name)))
    return asked != model.adapters[name]
