"""Normalisation on the device: from stored integers to network inputs, and back.

    zscore   clamp at 0 --> clip at the data set's maximum --> z-score with the data set's mean and std
    slice    clamp at 0 --> each slice linearly to [-1, 1], 0 to -1 and its maximum to 1
    case     clamp at 0 --> divide by the median of the case's volume --> clip at CASE_CLIP --> minus 1

See docs/explanation/method.md, section 2. Background (0) and missing modalities are -1 in all modes.

`case` removes the intensity scale of the scanner (preprocessing/intensity_scale.py). Its inverse needs the
median of the missing volume, which is estimated. `slice` is the normalisation of HF-GAN, kept as a baseline.
It has no inverse for a missing slice, whose maximum is unknown: `denormalise` estimates it from the available
slices (`slice_maxima`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from brasyn_dist.config import NormalisationMode
from brasyn_dist.preprocessing.statistics import Statistics

BACKGROUND_VALUE = -1.0
"""Normalised value of background and of missing modalities; below all foreground with the published
statistics (-0.84)."""

SLICE_RANGE = 2.0
"""Width of [-1, 1]."""

CASE_CLIP = 6.0
"""In medians. The 99.5th percentiles of all modalities of ten subjects are at most 4.2."""

CASE_RANGE = 3.0
"""Data range of SSIM and PSNR in medians, between those percentiles of T1n (1.3 - 2) and of T2w (1.7 -
4.2)."""


@dataclass(frozen=True)
class Normaliser:
    """Normalises slices (B, M, H, W) with statistics as (M,) tensors, on the device of the slices."""

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
        """(M,) width of the intensity range after normalisation: the data range of SSIM and PSNR."""
        if self.mode == "zscore":
            return self.clip_M / self.std_M
        return torch.full_like(self.clip_M, CASE_RANGE if self.mode == "case" else SLICE_RANGE)

    @property
    def ssim_offset(self) -> float:
        """Added to normalised values before SSIM.

        In mode `case` it makes them positive. Otherwise tissue near the median would have values near 0, for
        which the luminance term of SSIM is unstable: networks then left the fluid of T2w dark. In mode
        `zscore` the thesis computes SSIM of the z-scores.
        """
        return -BACKGROUND_VALUE if self.mode == "case" else 0.0

    @property
    def window(self) -> tuple[float, float]:
        """Normalised intensities that are shown as black and as white in every picture."""
        return (BACKGROUND_VALUE, {"zscore": 4.0, "slice": 1.0, "case": 1.5}[self.mode])

    def __call__(
        self, planes_BMHW: Tensor, factor_BM: Tensor | None = None, medians_BM: Tensor | None = None
    ) -> Tensor:
        """Normalise slices.

        Args:
            planes_BMHW: Integers.
            factor_BM: Above 0; intensities are multiplied by it first.
            medians_BM: (B or 1, M), above 0: medians of the foreground of the slices' volumes. Only mode
                `case` uses them.

        Returns:
            Normalised slices in `dtype`, background (0 and below) as BACKGROUND_VALUE.
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

    def neighbours(
        self, planes_BNMHW: Tensor, factor_BM: Tensor | None = None, medians_BM: Tensor | None = None
    ) -> Tensor:
        """Normalise N slices of each sample as `__call__` does: (B, N, M, H, W) in `dtype`."""
        slices = [self(planes_BNMHW[:, n], factor_BM, medians_BM) for n in range(planes_BNMHW.shape[1])]
        return torch.stack(slices, dim=1) if slices else planes_BNMHW.to(self.dtype)

    def volumes(
        self, x_BMXYZ: Tensor, factor_BM: Tensor | None = None, medians_BM: Tensor | None = None
    ) -> Tensor:
        """Normalise volumes or patches (B, M, X, Y, Z) as `__call__` does; not in mode `slice`."""
        return self(x_BMXYZ.flatten(3), factor_BM, medians_BM).unflatten(3, x_BMXYZ.shape[3:])

    def denormalise(
        self, image: Tensor, modality: int, planes_BMHW: Tensor | None = None, available: Sequence[int] = ()
    ) -> Tensor:
        """Inverse of normalisation for one modality. BACKGROUND_VALUE is treated as any other value.

        Args:
            image: Normalised, any shape and float type; (B, H, W) in mode `slice`.
            modality: Number of the modality.
            planes_BMHW: In mode `slice`, the integers of the slices that `image` was synthesised from.
            available: In mode `slice`, the modalities of these slices.

        Returns:
            Intensities at least 0 in `dtype`; in mode `case` in units of the volume's median.
        """
        if self.mode == "zscore":
            return (image.to(self.dtype) * self.std_M[modality] + self.mean_M[modality]).clamp(min=0)
        if self.mode == "case":
            return (image.to(self.dtype) - BACKGROUND_VALUE).clamp(min=0)
        if planes_BMHW is None:
            raise ValueError(
                "normalisation `slice` is inverted with the slices that the image was synthesised from"
            )
        maximum_B = self.slice_maxima(planes_BMHW, modality, available)
        return ((image.to(self.dtype) + 1) / SLICE_RANGE * maximum_B[:, None, None]).clamp(min=0)

    def slice_maxima(self, planes_BMHW: Tensor, modality: int, available: Sequence[int]) -> Tensor:
        """Estimated maxima (B,) of the slices of `modality`: its clip maximum times their brightness.

        Brightness: maximum / clip maximum of its modality, mean over the available slices.
        """
        chosen = list(available)
        brightness_BM = maxima(planes_BMHW[:, chosen].to(self.dtype)) / self.clip_M[chosen]
        return self.clip_M[modality] * brightness_BM.mean(1)


def maxima(planes_BMHW: Tensor) -> Tensor:
    """(B, M) largest intensity of each slice; 1 for slices of background only."""
    return planes_BMHW.amax((2, 3)).clamp(min=1)


def mask_missing(x_BMHW: Tensor, available_BM: Tensor) -> Tensor:
    """Slices or volumes in which those that are not available are set to BACKGROUND_VALUE."""
    return torch.where(available_BM.unflatten(1, (-1, *[1] * (x_BMHW.ndim - 2))), x_BMHW, BACKGROUND_VALUE)


def foreground(x: Tensor) -> Tensor:
    """Brain mask of normalised real slices. Not `>`: dark foreground may lie below background."""
    return x != BACKGROUND_VALUE


def foreground_medians(images_MXYZ: Tensor, modalities: Sequence[int]) -> Tensor:
    """(1, M) float32 (lower) medians of the foreground of `modalities`; 1 for other and for empty volumes."""
    medians_1M = torch.ones(1, images_MXYZ.shape[0], device=images_MXYZ.device)
    for modality in modalities:
        # A transposed volume is in C order as it was read, in which masks are applied fastest.
        volume_ZYX = images_MXYZ[modality].permute(2, 1, 0)
        values = volume_ZYX[volume_ZYX > 0]
        if len(values):
            medians_1M[0, modality] = values.median()
    return medians_1M
