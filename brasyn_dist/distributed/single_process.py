"""One process without Accelerate: to count what an update costs, and for tests of the training step.

It works on any device, also with fake tensors of a device that this machine does not have.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from brasyn_dist.config import RuntimeConfig
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.timing import PhaseClock
from brasyn_dist.distributed.trainable import Replicated, Trainable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LocalTrainable(Replicated):
    """See `Trainable`. Losses are not scaled."""

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Context without effect: there are no other ranks."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Backward pass."""
        loss.backward()

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        """Clip the gradients, update the weights and clear the gradients; the norm before clipping."""
        norm = self._clip(max_norm, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


class SingleProcess(ProcessGroup):
    """A group of one process. Networks run under the configured autocast."""

    trainable: type[LocalTrainable] = LocalTrainable

    def __init__(self, runtime: RuntimeConfig, device: torch.device | str = "cpu") -> None:
        # Host time: the device may be one that this machine does not have.
        super().__init__(runtime, torch.device(device), PhaseClock(torch.device("cpu")))

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module) -> Trainable:
        """See `ProcessGroup.prepare`."""
        if self.runtime.precision != "no":
            module.forward = self._autocast_forward(module.forward)
        return self.trainable(state, module, optimizer)

    def _autocast_forward(self, forward: Any) -> Any:
        """`forward` under autocast with float32 results, as Accelerate does it."""

        def run(*inputs: Any, **named: Any) -> Any:
            with self.autocast():
                outputs = forward(*inputs, **named)
            return tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, outputs)

        return run

    def autocast(self) -> AbstractContextManager:
        """Context in which operations run in the configured precision."""
        dtype = DTYPES.get(self.runtime.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)
