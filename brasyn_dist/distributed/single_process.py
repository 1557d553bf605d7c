"""One process without Accelerate: for counting what an update costs, and for looking at one under a magnifying glass.

Works on any device, also on fake tensors of a device that this machine does not have.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from brasyn_dist.config import RuntimeConfig
from brasyn_dist.distributed.process_group import Distributed, Trainable
from brasyn_dist.distributed.timing import PhaseClock

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OneProcess(Distributed):
    """`Distributed` for a world of 1; networks run under the configured autocast, losses are not scaled."""

    rank, world, local_rank, local_world, is_main = 0, 1, 0, 1, True
    device = torch.device("cpu")

    def __init__(self, runtime: RuntimeConfig, device: torch.device | str = "cpu") -> None:
        self.runtime = runtime
        self.device = torch.device(device)
        # The host's time, which nobody reads here: the device may be one that this machine does not have.
        self.clock = PhaseClock(torch.device("cpu"))

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module) -> Trainable:
        if self.runtime.precision != "no":
            module.forward = self._autocast(module.forward)
        return Trainable(state, module, optimizer, optimizer, None)

    def _autocast(self, forward: Any) -> Any:
        """As Accelerate does it: results in float32 again."""

        def run(*inputs: Any) -> Any:
            with self.autocast():
                outputs = forward(*inputs)
            return tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, outputs)

        return run

    def accumulate(self, network: Trainable, last: bool) -> AbstractContextManager:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_and_step(self, network: Trainable, max_norm: float, rate: float) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(network.module.parameters(), max_norm or float("inf"))
        for group in network.optimizer.param_groups:
            group["lr"] = rate
        network.optimizer.step()
        network.optimizer.zero_grad()
        return norm

    def autocast(self) -> AbstractContextManager:
        dtype = DTYPES.get(self.runtime.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)
