"""The state of a run and its form in a checkpoint.

    <network>.safetensors, average.safetensors     weights
    <network>_adam.safetensors                     <parameter>.<exp_avg|exp_avg_sq|step>
    state.json                                     step, identity, options, best, loss scale

Networks are `generator` and, if the objective needs it, `discriminator`; or the one network of another task.
A network that is used but not trained is not part of the state. There is no random state, since everything
random is a function of (seed, step), and no scheduler, since the learning rate is a function of the step.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.errors import CheckpointError
from brasyn_dist.training.checkpoint import Checkpoint


@dataclass
class TrainState:
    """Networks and counters of a run."""

    networks: dict[str, Trainable]
    """By name in the checkpoint. The first is the main network: it is averaged, validated and exported."""
    average: nn.Module | None
    """Exponential moving average of the main network's weights."""
    step: int = 0
    """Completed optimiser steps."""
    best: dict[str, float] = field(default_factory=dict)
    """`step` and `value` of the best validation so far; empty before the first."""

    @property
    def generator(self) -> Trainable:
        """The generator of a GAN."""
        return self.networks["generator"]

    @property
    def discriminator(self) -> Trainable | None:
        """The discriminator of a GAN; None if the objective does not need it."""
        return self.networks.get("discriminator")

    @property
    def main(self) -> Trainable:
        """The network that is validated and exported."""
        return next(iter(self.networks.values()))

    @property
    def network(self) -> nn.Module:
        """The network that is validated and exported: the average if there is one."""
        return self.average or self.main.module

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Average <- decay * average + (1 - decay) * network, for all parameters."""
        if self.average is not None:
            with self.main.gathered():
                average: list[Tensor] = list(self.average.parameters())
                current: list[Tensor] = list(self.main.module.parameters())
                torch._foreach_lerp_(average, current, 1.0 - decay)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Named tensors by file name, complete on rank 0. All ranks call this together."""
        groups: dict[str, Mapping[str, Tensor]] = {
            **{name: network.state_dict() for name, network in self.networks.items()},
            **{f"{name}_adam": adam_tensors(network) for name, network in self.networks.items()},
        }
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        return groups

    def load(self, checkpoint: Checkpoint) -> None:
        """Restore everything from `checkpoint`, whose identity has been checked.

        Raises:
            CheckpointError: The weights do not fit the networks.
        """
        for name, network in self.networks.items():
            device = next(network.module.parameters()).device
            load_module(network, checkpoint, name)
            load_adam(network, checkpoint.tensors(f"{name}_adam", str(device)))
        if self.average is not None:
            has_average = (checkpoint.folder / "average.safetensors").exists()
            load_module(self.average, checkpoint, "average" if has_average else next(iter(self.networks)))
        self.step = checkpoint.step
        self.best = dict(checkpoint.state.get("best", {}))


def average_of(network: nn.Module) -> nn.Module:
    """A copy that starts equal to `network`, in evaluation mode and without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def load_module(module: nn.Module | Trainable, checkpoint: Checkpoint, name: str) -> None:
    """Load `<name>.safetensors`. Raises CheckpointError if the weights do not fit the module."""
    try:
        module.load_state_dict(checkpoint.tensors(name))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.folder / name}.safetensors does not fit the model: {error}"
        ) from None


def adam_tensors(network: Trainable) -> dict[str, Tensor]:
    """Adam's state as `<parameter>.<entry>`; empty before the first step."""
    return {
        f"{name}.{entry}": torch.as_tensor(value)
        for name, entries in network.adam_state().items()
        for entry, value in entries.items()
    }


def load_adam(network: Trainable, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `adam_tensors`."""
    state: dict[str, dict[str, Tensor]] = {name: {} for name, _ in network.module.named_parameters()}
    for key, value in tensors.items():
        name, _, entry = key.rpartition(".")
        if name in state:
            state[name][entry] = value.clone()
    network.load_adam_state(state)
