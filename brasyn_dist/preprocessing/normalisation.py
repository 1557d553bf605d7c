"""Normalisation on the device: stored integers to what the networks see, and back (method, section 2).

    zscore   integers --> clamp at 0 --> clip at the data set's maximum --> z-score with the data set's mean and std
    slice    integers --> clamp at 0 --> each slice linearly to [-1, 1], 0 to -1 and its maximum to 1
    case     integers --> clamp at 0 --> by the median of the case's volume --> clip at CASE_CLIP --> minus 1

Background (0) and missing modalities are -1 in all.

`case` takes away the scanner's scale (preprocessing/intensity_scale.py); its inverse needs the missing volume's median, which is estimated.
`slice` is HF-GAN's own, kept as a baseline. It has no inverse for a missing slice, whose maximum nobody knows: `denormalise`
estimates it from the available slices (`slice_maxima`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from brasyn_dist.config import NormalisationMode
from brasyn_dist.preprocessing.statistics import Statistics

BACKGROUND_VALUE = -1.0
"""Normalised value of background and of missing modalities; below all foreground with the published statistics (-0.84)."""

SLICE_RANGE = 2.0
"""Width of [-1, 1]."""

CASE_CLIP = 6.0
"""Medians. Above the 99.5th percentile of all modalities of all of ten subjects, the largest of which was 4.2."""

CASE_RANGE = 3.0
"""Medians: data range of SSIM and PSNR, between those percentiles of T1n (1.3 - 2) and of T2w (1.7 - 4.2)."""


@dataclass(frozen=True)
class Normaliser:
    """Statistics as (4,) tensors in modality order, on the device where the slices are."""

    statistics: Statistics
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    mode: NormalisationMode = "zscore"
    mean_M: Tensor = field(init=False, repr=False)
    std_M: Tensor = field(init=False, repr=False)
    clip_M: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, column in (("mean_M", "mean"), ("std_M", "std"), ("clip_M", "clip_max")):
            values = torch.tensor(self.statistics.column(column), dtype=self.dtype, device=self.device)
            object.__setattr__(self, name, values)

    @property
    def range_M(self) -> Tensor:
        """(4,) Width of the intensity range after normalisation: SSIM's and PSNR's data range."""
        if self.mode == "zscore":
            return self.clip_M / self.std_M
        return torch.full_like(self.clip_M, CASE_RANGE if self.mode == "case" else SLICE_RANGE)

    @property
    def window(self) -> tuple[float, float]:
        """Normalised intensities to show from black to white, in every picture the same."""
        return (BACKGROUND_VALUE, {"zscore": 4.0, "slice": 1.0, "case": 1.5}[self.mode])

    def __call__(
        self, planes_BMHW: Tensor, factor_BM: Tensor | None = None, medians_BM: Tensor | None = None
    ) -> Tensor:
        """Integers (B, 4, H, W) to `dtype`, background (0 and below) to BACKGROUND_VALUE.

        `factor_BM` (B, 4), above 0, multiplies the intensities first. `medians_BM` (B or 1, 4), above 0, are those of the
        foreground of the volumes that the slices are of; mode `case` needs them, others do not look at them.
        """
        planes = planes_BMHW.to(self.dtype)
        if self.mode == "case":
            if medians_BM is None:
                raise ValueError("normalisation `case` needs the medians of the volumes")
            planes = planes / medians_BM[:, :, None, None].to(self.dtype)
        if factor_BM is not None:
            planes = planes * factor_BM[:, :, None, None].to(self.dtype)
        if self.mode == "slice":
            # Where all is background the quotient is 0 / 1; `where` also makes background exactly -1.
            scores = SLICE_RANGE * planes / maxima(planes)[..., None, None] - 1
            return torch.where(planes > 0, scores, BACKGROUND_VALUE)
        if self.mode == "case":
            return planes.clamp(0, CASE_CLIP) + BACKGROUND_VALUE
        clipped = torch.minimum(planes, self.clip_M[:, None, None])
        scores = (clipped - self.mean_M[:, None, None]) / self.std_M[:, None, None]
        return torch.where(planes > 0, scores, BACKGROUND_VALUE)

    def denormalise(
        self,
        image: Tensor,
        modality: int,
        planes_BMHW: Tensor | None = None,
        available: Sequence[int] = (),
    ) -> Tensor:
        """Intensities of one modality's normalised `image` (any shape, any float), clamped at 0; `dtype` as normalised.

        In mode `case` they are in units of the volume's median.

        Knows nothing of background: BACKGROUND_VALUE becomes some intensity like any other value. In mode `slice`, `image`
        is (B, H, W), and `planes_BMHW` are the integers of the modalities in `available` that it was made from.
        """
        if self.mode == "zscore":
            return (image.to(self.dtype) * self.std_M[modality] + self.mean_M[modality]).clamp(min=0)
        if self.mode == "case":
            return (image.to(self.dtype) - BACKGROUND_VALUE).clamp(min=0)
        if planes_BMHW is None:
            raise ValueError(
                "slices normalised one by one are denormalised with the slices they were made from"
            )
        maximum_B = self.slice_maxima(planes_BMHW, modality, available)
        return ((image.to(self.dtype) + 1) / SLICE_RANGE * maximum_B[:, None, None]).clamp(min=0)

    def slice_maxima(self, planes_BMHW: Tensor, modality: int, available: Sequence[int]) -> Tensor:
        """(B,) estimated maximum of the `modality`'s slices: its clip maximum, scaled by how bright the available ones are.

        Brightness is a slice's maximum by its modality's clip maximum, on the mean over those available.
        """
        chosen = list(available)
        brightness_BM = maxima(planes_BMHW[:, chosen].to(self.dtype)) / self.clip_M[chosen]
        return self.clip_M[modality] * brightness_BM.mean(1)


def maxima(planes_BMHW: Tensor) -> Tensor:
    """(B, M) largest intensity of each slice; 1 where all is background."""
    return planes_BMHW.amax((2, 3)).clamp(min=1)


def mask_missing(x_BMHW: Tensor, available_BM: Tensor) -> Tensor:
    """Slices with those that are not available set to BACKGROUND_VALUE."""
    return torch.where(available_BM[:, :, None, None], x_BMHW, BACKGROUND_VALUE)


def foreground(x: Tensor) -> Tensor:
    """Where normalised real slices show brain. By inequality: some statistics put dark foreground below background."""
    return x != BACKGROUND_VALUE


def foreground_medians(images_MXYZ: Tensor, modalities: Sequence[int]) -> Tensor:
    """(1, 4) float32: the (lower) median of the foreground of each of those volumes; 1 for others and for empty ones."""
    medians_1M = torch.ones(1, images_MXYZ.shape[0], device=images_MXYZ.device)
    for modality in modalities:
        # Transposed, a volume as it is read lies in C order, in which masks are applied fastest.
        volume_ZYX = images_MXYZ[modality].permute(2, 1, 0)
        values = volume_ZYX[volume_ZYX > 0]
        if len(values):
            medians_1M[0, modality] = values.median()
    return medians_1M
