"""Preprocessing of the slices that a network was trained with. Inference needs it beside the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch

from brasyn_dist.brats import BRATS
from brasyn_dist.config import NormalisationMode
from brasyn_dist.errors import CheckpointError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import Statistics


@dataclass(frozen=True)
class Preprocessing:
    """Stored in config.json beside exported weights."""

    statistics: Statistics
    """Intensity statistics of the training set."""
    views: tuple[str, ...] = ()
    """Views that the network was trained on; empty for converted weights, which do not record them."""
    normalisation: NormalisationMode = "zscore"
    intensity_scale: IntensityScaleModel | None = None
    """Distribution of the intensity scales of the training cases. Normalisation `case` needs it."""
    modality_set: ModalitySet = BRATS
    patch: tuple[int, int, int] | None = None
    """Voxels of the patches that a network of volumes was trained on; None: slices of `views`."""

    def normaliser(self, device: torch.device | str = "cpu") -> Normaliser:
        """Normaliser with these statistics, on `device`."""
        return Normaliser(self.statistics, torch.device(device), mode=self.normalisation)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible mapping; without the modality set if it is BRATS, as in exports of version 0.1."""
        values: dict[str, Any] = {
            "statistics": self.statistics.to_dict(),
            "normalisation": self.normalisation,
            "views": list(self.views),
        }
        if self.intensity_scale is not None:
            values["scales"] = self.intensity_scale.to_dict()
        if self.patch is not None:
            values["patch"] = list(self.patch)
        if self.modality_set != BRATS:
            values["modality_set"] = self.modality_set.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object) -> "Preprocessing":
        """Inverse of `to_dict`.

        Raises:
            CheckpointError: An unknown normalisation, naming `where`.
            DataError: Invalid statistics, scales or modality set, naming `where`.
        """
        # Exports made before there was a choice do not have the key.
        mode = values.get("normalisation", "zscore")
        if mode not in get_args(NormalisationMode):
            raise CheckpointError(f"{where}: unknown normalisation {mode!r}; export again")
        chosen = ModalitySet.from_dict(values["modality_set"]) if "modality_set" in values else BRATS
        statistics = Statistics.from_dict(values["statistics"], where, chosen)
        scale = IntensityScaleModel.from_dict(values["scales"], where, chosen) if "scales" in values else None
        patch = tuple(values["patch"]) if "patch" in values else None
        return cls(statistics, tuple(values["views"]), mode, scale, chosen, patch)
