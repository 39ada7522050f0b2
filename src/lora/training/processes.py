"""One process or several: devices, shares of a step, summed gradients. accelerate starts and connects them.

Adapters are small, so each process keeps a whole model and a step needs one sum over all gradients in one flat tensor;
wrapping the model for distributed training would send the same bytes in many pieces.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """The processes that train together; started by ``accelerate launch`` or ``torchrun``, else just this one."""

    def __init__(self) -> None:
        from accelerate import PartialState

        # Without this, accelerate ignores what a launcher says on a machine with no accelerator.
        self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.device: torch.device = self._state.device
        self.main: bool = self._state.is_main_process
        if self.count > 1:
            # Left to the interpreter's own end, gloo's threads can abort a process that has done its work.
            atexit.unregister(_leave)
            atexit.register(_leave)

    def share(self, parameters: dict[str, Any]) -> None:
        """Start all processes from the first one's values."""
        if self.count > 1:
            for parameter in parameters.values():
                torch.distributed.broadcast(parameter.data, 0)

    def sum_up(self, parameters: Iterable[Any], sums: list[float]) -> list[float]:
        """Sum the gradients over all processes, in place; returns ``sums``, such as the loss, summed too."""
        if self.count > 1:
            trained = list(parameters)
            # Whether a parameter has a gradient at all is the same question on every process: zeros stand in where a
            # process had no batch, but a module that nobody called must not begin to decay.
            present = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=self.device)
            torch.distributed.all_reduce(present)
            used = [p for p, n in zip(trained, present.tolist(), strict=True) if n]
            if not used:
                return sums  # the caller says so
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
            torch.distributed.all_reduce(flat)
            for parameter, piece in zip(used, flat.split([p.numel() for p in used]), strict=True):
                parameter.grad = piece.view_as(parameter).clone()
            total = torch.tensor(sums, dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(total)
            return list(total.tolist())
        return sums

    def gather(self, value: Any) -> list[Any]:
        """Every process's ``value``, in the order of their ranks, on all of them."""
        everyone: list[Any] = [value]
        if self.count > 1:
            everyone = [None] * self.count
            torch.distributed.all_gather_object(everyone, value)
        return everyone

    def agree(self, value: Any) -> Any:
        """The first process's ``value`` on all of them: decisions must not part."""
        if self.count > 1:
            box = [value]
            torch.distributed.broadcast_object_list(box, 0)
            return box[0]
        return value

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any process."""
        if self.count > 1:
            total = torch.tensor(float(flag), device=self.device)
            torch.distributed.all_reduce(total)
            return bool(total)
        return flag

    def wait(self) -> None:
        """Until all processes are here."""
        self._state.wait_for_everyone()

    def random_states(self) -> dict[str, Tensor]:
        """States of torch's generators on every process, as tensors for a checkpoint."""
        mine = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(self.device)
        everyone = self.gather(mine)
        return {f"random.{key}.{rank}": state for rank, each in enumerate(everyone) for key, state in each.items()}

    def restore_random(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `random_states` saved for this process."""
        torch.set_rng_state(tensors[f"random.cpu.{self.rank}"])
        if self.device.type == "cuda" and f"random.cuda.{self.rank}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{self.rank}"], self.device)
