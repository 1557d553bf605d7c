"""DistributedDataParallel through Accelerate; with one process the bare network."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from brasyn_dist.distributed.timing import PhaseClock
from brasyn_dist.distributed.trainable import Replicated


class DdpTrainable(Replicated):
    """See `Trainable`."""

    def __init__(
        self,
        module: nn.Module,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Any,
        clock: PhaseClock,
    ) -> None:
        super().__init__(module, wrapped, optimizer)
        self._accelerator, self._clock = accelerator, clock
        self._prepared_optimizer = accelerator.prepare_optimizer(optimizer)

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Context of one backward pass; DDP exchanges gradients in the `last` only."""
        if last or self._accelerator.num_processes == 1:
            return nullcontext()
        return self._accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a scaled loss."""
        self._accelerator.backward(loss)
        self._clock.exchanged()

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        """Clip the gradients, update the weights and clear the gradients; the norm before clipping."""
        self._accelerator.unscale_gradients(self._prepared_optimizer)
        norm = self._clip(max_norm, rate)
        self._prepared_optimizer.step()
        self._prepared_optimizer.zero_grad()
        return norm
