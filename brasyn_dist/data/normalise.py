"""Normalisation on the device: stored integers to what the networks see, and back (method, section 2).

integers --> clamp at 0 --> clip at the data set's maximum --> z-score with the data set's mean and std
             background (0) and missing modalities are -1
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from brasyn_dist.data.statistics import Statistics

BACKGROUND_VALUE = -1.0
"""Normalised value of background and of missing modalities; below all foreground with the published statistics (-0.84)."""


@dataclass(frozen=True)
class Normaliser:
    """Statistics as (4,) tensors in modality order, on the device where the slices are."""

    statistics: Statistics
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    mean_M: Tensor = field(init=False, repr=False)
    std_M: Tensor = field(init=False, repr=False)
    clip_M: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, column in (("mean_M", "mean"), ("std_M", "std"), ("clip_M", "clip_max")):
            values = torch.tensor(self.statistics.column(column), dtype=self.dtype, device=self.device)
            object.__setattr__(self, name, values)

    @property
    def range_M(self) -> Tensor:
        """(4,) Width of the intensity range after normalisation, clip maximum / std: SSIM's and PSNR's data range."""
        return self.clip_M / self.std_M

    def __call__(self, planes_BMHW: Tensor, factor_BM: Tensor | None = None) -> Tensor:
        """Integers (B, 4, H, W) to z-scores of `dtype`, background (0 and below) to BACKGROUND_VALUE.

        `factor_BM` (B, 4), above 0, multiplies the intensities first.
        """
        planes = planes_BMHW.to(self.dtype)
        if factor_BM is not None:
            planes = planes * factor_BM[:, :, None, None].to(self.dtype)
        clipped = torch.minimum(planes, self.clip_M[:, None, None])
        scores = (clipped - self.mean_M[:, None, None]) / self.std_M[:, None, None]
        return torch.where(planes > 0, scores, BACKGROUND_VALUE)

    def denormalise(self, image: Tensor, modality: int) -> Tensor:
        """Intensities of one modality's normalised `image` (any shape, any float), clamped at 0; `dtype` as normalised.

        Knows nothing of background: BACKGROUND_VALUE becomes some intensity like any other value.
        """
        return (image.to(self.dtype) * self.std_M[modality] + self.mean_M[modality]).clamp(min=0)


def mask_missing(x_BMHW: Tensor, available_BM: Tensor) -> Tensor:
    """Slices with those that are not available set to BACKGROUND_VALUE."""
    return torch.where(available_BM[:, :, None, None], x_BMHW, BACKGROUND_VALUE)


def foreground(x: Tensor) -> Tensor:
    """Where normalised real slices show brain. By inequality: some statistics put dark foreground below background."""
    return x != BACKGROUND_VALUE
