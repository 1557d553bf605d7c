"""Networks of volumes: their common interface and construction.

    VolumeUNetConfig, RefinerConfig --build_volume_network--> VolumeNetwork --save_pretrained--> export

They are trained on patches (training/volume_task.py). Inference moves a window over the volume
(inference/sliding_window.py).
"""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from brasyn_dist.brats import BRATS
from brasyn_dist.errors import CheckpointError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.layers import seeded_initialisation
from brasyn_dist.models.pretrained import REFINER, VOLUME, PretrainedNetwork

CLASSES = {
    VOLUME: "brasyn_dist.models.volume_unet.VolumeUNet",
    REFINER: "brasyn_dist.models.refiner.Refiner",
}
"""Class of each kind of network; imported when it is used."""


class VolumeNetwork(PretrainedNetwork):
    """A network that synthesises one missing modality of a patch from the available ones."""

    config: Any
    needs_stage1: ClassVar[bool] = False
    """Whether the network needs the volume of a first stage."""

    def forward(
        self,
        x_BMXYZ: Tensor,
        available_BM: Tensor,
        target_B: Tensor,
        stage1_B1XYZ: Tensor | None = None,
    ) -> Tensor:
        """Synthesise the target modality of each sample.

        Args:
            x_BMXYZ: Normalised patches (B, M, X, Y, Z). Missing ones may hold any values.
            available_BM: (B, M) bool, at least one True per sample.
            target_B: Target modalities (B,) int64.
            stage1_B1XYZ: Normalised target modality as a first stage synthesised it, for `needs_stage1`.

        Returns:
            Normalised patches (B, 1, X, Y, Z).
        """
        raise NotImplementedError

    def synthesise(
        self, x_BMXYZ: Tensor, available: Sequence[int], target: int, stage1_B1XYZ: Tensor | None = None
    ) -> Tensor:
        """`forward` for one set of available modalities in all samples."""
        size, device = x_BMXYZ.shape[0], x_BMXYZ.device
        present = [m in available for m in range(len(self.modality_set))]
        available_BM = torch.tensor(present, device=device).expand(size, -1)
        return self(x_BMXYZ, available_BM, torch.full((size,), target, device=device), stage1_B1XYZ)


def volume_network_class(kind: str) -> type[Any]:
    """Class of a kind of network. Raises CheckpointError for another kind."""
    if kind not in CLASSES:
        raise CheckpointError(f"a {kind} is no network of volumes; there are {', '.join(CLASSES)}")
    module, _, name = CLASSES[kind].rpartition(".")
    return getattr(importlib.import_module(module), name)


def build_volume_network(kind: str, config: Any, seed: int, modality_set: ModalitySet = BRATS) -> Any:
    """A network whose initial weights are a function of the arguments only."""
    with seeded_initialisation(seed, kind):
        return volume_network_class(kind)(config, modality_set)
