"""Everything that a run must carry through a kill, and its form in a checkpoint.

    <network>.safetensors, average.safetensors     weights
    <network>_adam.safetensors                     <parameter>.<exp_avg|exp_avg_sq|step>
    state.json                                     step, identity, options, best, loss scale

Networks are `generator` and `discriminator`, or `segmenter`. One that is used but not trained is not part of the state.

No random state: everything random is a function of (seed, step). No scheduler: the rate is a function of the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.errors import CheckpointError
from brasyn_dist.training.checkpoint import Checkpoint


@dataclass
class TrainState:
    """Live state of a run. `step` counts completed optimiser steps."""

    networks: dict[str, Trainable]
    """By name, as checkpoints name them. The first is the one that is averaged, validated and exported."""
    average: nn.Module | None
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """`step` and `value` of the best validation so far; empty before the first."""

    @property
    def generator(self) -> Trainable:
        return self.networks["generator"]

    @property
    def discriminator(self) -> Trainable:
        return self.networks["discriminator"]

    @property
    def main(self) -> Trainable:
        return next(iter(self.networks.values()))

    @property
    def network(self) -> nn.Module:
        """The network that is validated and exported: the average where there is one."""
        return self.average or self.main.module

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Named tensors by file name, as `save_checkpoint` takes them, in full on rank 0; ranks call this together."""
        groups: dict[str, Mapping[str, Tensor]] = {
            **{name: network.state_dict() for name, network in self.networks.items()},
            **{f"{name}_adam": adam_tensors(network) for name, network in self.networks.items()},
        }
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        return groups

    def load(self, checkpoint: Checkpoint) -> None:
        """Take everything from `checkpoint`; its identity has been checked."""
        for name, network in self.networks.items():
            device = next(network.module.parameters()).device
            load_weights(network, checkpoint, name)
            load_adam(network, checkpoint.tensors(f"{name}_adam", str(device)))
        if self.average is not None:
            has_average = (checkpoint.folder / "average.safetensors").exists()
            load_weights(self.average, checkpoint, "average" if has_average else next(iter(self.networks)))
        self.step = checkpoint.step
        self.best = dict(checkpoint.state.get("best", {}))


def load_weights(module: nn.Module | Trainable, checkpoint: Checkpoint, name: str) -> None:
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
    network.load_adam_state(
        {
            name: {
                entry: tensors[f"{name}.{entry}"].clone()
                for entry in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{entry}" in tensors
            }
            for name, _ in network.module.named_parameters()
        }
    )
