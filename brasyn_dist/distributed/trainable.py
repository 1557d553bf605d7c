"""A network that is trained on all ranks: what the training step and the checkpoint need of it.

Trainable (interface)
  Replicated          every rank holds all weights and optimiser state
    DdpTrainable      DistributedDataParallel through Accelerate
    LocalTrainable    one process, without Accelerate              (single_process.py)
  ZeroTrainable       a DeepSpeed engine: state is sharded         (zero.py)
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from brasyn_dist.distributed.timing import PhaseClock


class Trainable(Protocol):
    """A network with its optimiser.

    The methods that read or load whole state are called by all ranks together.
    """

    module: nn.Module
    """The bare network, for state and for use while frozen."""
    wrapped: nn.Module
    """Call this one to train."""
    optimizer: torch.optim.Optimizer

    def frozen(self) -> AbstractContextManager[nn.Module]:
        """The bare module with `requires_grad` off.

        Gradients still pass through it; none are exchanged for it.
        """

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Context of forward and backward of one micro-batch.

        Ranks exchange gradients in the `last` one only.
        """

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        """Unscale, clip to `max_norm` (0: no clipping), step at learning rate `rate`, clear gradients.

        Returns:
            The norm of the gradient before clipping, ().
        """

    @property
    def parameter_count(self) -> int:
        """Number of weights."""

    def gathered(self) -> AbstractContextManager:
        """Context in which the parameters of `module` are whole and can be read."""

    def state_dict(self) -> dict[str, Tensor]:
        """All weights of the bare module, on rank 0."""

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`, on every rank.

        Raises:
            RuntimeError: `weights` do not fit the module.
        """

    def adam_state(self) -> dict[str, dict[str, Any]]:
        """Adam's `step` and full moments for each parameter name, on rank 0. Empty before the first step."""

    def load_adam_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Inverse of `adam_state`, on every rank."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """`module` with `requires_grad` off."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)


class Replicated:
    """State of a network of which every rank holds all weights and all optimiser state."""

    def __init__(self, module: nn.Module, wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.wrapped, self.optimizer = module, wrapped, optimizer

    def frozen(self) -> AbstractContextManager[nn.Module]:
        """See `Trainable.frozen`."""
        return frozen(self.module)

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.module.parameters())

    def gathered(self) -> AbstractContextManager:
        """Context without effect: every rank holds all weights."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by name."""
        return self.module.state_dict()

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights."""
        self.module.load_state_dict(weights)

    def adam_state(self) -> dict[str, dict[str, Any]]:
        """State of Adam by the parameter's name."""
        return {
            name: dict(self.optimizer.state.get(parameter, {}))
            for name, parameter in self.module.named_parameters()
        }

    def load_adam_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Set the state of Adam from `adam_state`."""
        # The optimiser's own load_state_dict decides on which device `step` is kept.
        numbered = {
            number: state[name]
            for number, (name, _) in enumerate(self.module.named_parameters())
            if state.get(name)
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})

    def _clip(self, max_norm: float, rate: float) -> Tensor:
        """Clip the gradient and set the learning rate."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), max_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return norm


class DdpTrainable(Replicated):
    """DistributedDataParallel through Accelerate; with one process the bare network. See `Trainable`."""

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
