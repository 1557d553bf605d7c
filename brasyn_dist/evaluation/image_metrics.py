"""Image metrics of a synthetic volume against the real one: pure functions of 3-D arrays.

    challenge SSIM   Each image is clipped to its own 0.5 and 99.5 percentiles and scaled to [0, 1]; voxels
                     outside the region are set to 0. The metric is the mean of the 3-D SSIM map over the
                     whole volume (docs/explanation/method.md, section 8). Background dominates it.
    region SSIM      The SSIM map of the brain, averaged over the voxels of the region only.
    MAE, PSNR        Over the region, in the units of the files. Peak: 99.5th percentile of the real brain.
    normalised MAE   MAE divided by the peak, to compare scans of different intensity scales.
    matched PSNR, MAE  The same after the synthetic volume is scaled to the median of the real brain: without
                     the error of the predicted intensity scale.

The SSIM map has torchmetrics' default parameters, which the challenge uses: Gaussian window of sigma 1.5
with 11 taps along each axis, K1 0.01, K2 0.03, data range of the pair. It is computed on the bounding box
of the region with a margin of one window radius. Outside of that box both images are 0 and the map is 1.

    real volume --> ReferenceVolume: regions, scaled volume, local moments in the boxes of brain and tumour
    synthetic volume --scores()--> its moments in both boxes
                                   healthy tissue: brain minus tumour, since the filters are linear
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from brasyn_dist.brats import BRATS
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.perceptual_metrics import (
    gradient_magnitude,
    gradient_similarity,
    multi_scale_ssim,
)

RADIUS = 5
"""Radius of the Gaussian window in voxels, and margin around bounding boxes."""
_WINDOW = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()
K1, K2 = 0.01, 0.03
PERCENTILES = (0.5, 99.5)
REGIONS = ("brain", "healthy", "tumour")

MetricValues = dict[str, float | None]
"""Values by name, such as `mae/brain`. None: the region is unknown or empty."""

DESCRIPTIONS: Mapping[str, str] = {
    "mae": "mean absolute error, in the units of the files",
    "nmae": "mean absolute error divided by the 99.5th percentile of the real brain",
    "matched_nmae": "the same after scaling the synthetic volume to the median of the real brain",
    "matched_psnr": "PSNR after scaling the synthetic volume to the median of the real brain",
    "psnr": "peak signal-to-noise ratio in dB, peak = 99.5th percentile of the real brain",
    "ssim": "structural similarity, averaged over the region only",
    "challenge_ssim": "structural similarity as the challenge computes it: mean over the whole volume, "
    "in which all voxels outside the region are 0; background dominates it",
    "ms_ssim": "multi-scale structural similarity of the axial slices, in the bounding box of the brain",
    "gmsd": "gradient-magnitude similarity deviation: standard deviation over the region, 0 if equal",
}


@dataclass(frozen=True, eq=False)
class Regions:
    """Boolean masks (x, y, z). `tumour` and `healthy` are None if the case has no segmentation.

    A resection cavity is in neither.
    """

    brain: np.ndarray
    tumour: np.ndarray | None
    healthy: np.ndarray | None


def regions_of(
    real_xyz: np.ndarray, labels_xyz: np.ndarray | None, highest_label: int = BRATS.highest_label
) -> Regions:
    """Brain: foreground of the real volume.

    Tumour: labels from 1 to `highest_label` within the brain. Healthy: the brain without any label.
    """
    brain = real_xyz > 0
    if labels_xyz is None:
        return Regions(brain, None, None)
    labelled = labels_xyz > 0
    return Regions(brain, labelled & (labels_xyz <= highest_label) & brain, brain & ~labelled)


@dataclass(frozen=True, eq=False)
class Moments:
    """Local mean and local mean square of a volume, float64 (x, y, z)."""

    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, volume: np.ndarray) -> "Moments":
        """Moments of a float64 volume."""
        return cls(local_mean(volume), local_mean(volume * volume))

    def without(self, other: "Moments", inner: tuple[slice, ...]) -> "Moments":
        """Moments without the part `other` of the volume, which lies in the box `inner`."""
        return Moments(_subtract(self.mean, other.mean, inner), _subtract(self.square, other.square, inner))


class ReferenceVolume:
    """A real volume, prepared for comparison with several synthetic ones.

    Args:
        real_xyz: Real volume in the units of the file; voxels above 0 (at least one) are brain.
        labels_xyz: Labels (0: none), or None if the case has no segmentation.
        highest_label: Labels above it are no tumour (resection cavity).

    Raises:
        DataError: No voxel is brain.
    """

    def __init__(
        self,
        real_xyz: np.ndarray,
        labels_xyz: np.ndarray | None,
        highest_label: int = BRATS.highest_label,
    ):
        self.real = real_xyz
        self.regions = regions_of(real_xyz, labels_xyz, highest_label)
        brain, tumour = self.regions.brain, self.regions.tumour
        if not brain.any():
            raise DataError("the real volume is empty: no voxel is above 0")
        self.peak = float(np.percentile(real_xyz[brain], 99.5))
        self._box = bounding_box(brain, RADIUS)
        scaled = scale_to_unit(real_xyz)[self._box].astype(np.float64)
        self._brain = scaled * brain[self._box]
        self._moments = Moments.of(self._brain)
        self._gradient = gradient_magnitude(self._brain)
        self._inner: tuple[slice, ...] | None = None
        if tumour is None or self.regions.healthy is None:
            return
        self._healthy_mask, self._healthy_moments = self.regions.healthy[self._box], self._moments
        self._has_cavity = bool((brain & ~tumour & ~self.regions.healthy).any())
        if tumour.any():
            self._tumour_mask = tumour[self._box]
            # Box of the tumour within the box of the brain: both end at the volume's border or have a margin.
            self._inner = bounding_box(self._tumour_mask, RADIUS)
            self._tumour = (self._brain * self._tumour_mask)[self._inner]
            self._tumour_moments = Moments.of(self._tumour)
            self._healthy_moments = self._moments.without(self._tumour_moments, self._inner)
        if self._has_cavity:
            self._healthy_moments = Moments.of(self._brain * self._healthy_mask)

    def scores(self, synthetic_xyz: np.ndarray) -> MetricValues:
        """All image metrics of one synthetic volume, of the shape of the real one and in the same units."""
        masks = {name: getattr(self.regions, name) for name in REGIONS}
        values: MetricValues = {}
        for name, mask in masks.items():
            special = ("matched_nmae", "matched_psnr") if name == "brain" else ("challenge_ssim",)
            values |= dict.fromkeys(
                f"{metric}/{name}" for metric in ("mae", "nmae", "psnr", "ssim", *special)
            )
            if mask is not None and mask.any():
                error = synthetic_xyz[mask].astype(np.float64) - self.real[mask]
                mae, values[f"psnr/{name}"] = error_metrics(error, self.peak)
                values |= {f"mae/{name}": mae, f"nmae/{name}": mae / self.peak}
        brain = self.regions.brain
        mae, values["matched_psnr/brain"] = error_metrics(
            matched(synthetic_xyz[brain], self.real[brain]) - self.real[brain], self.peak
        )
        values["matched_nmae/brain"] = mae / self.peak
        return values | self._ssim_scores(scale_to_unit(synthetic_xyz)[self._box].astype(np.float64))

    def _ssim_scores(self, scaled: np.ndarray) -> MetricValues:
        """SSIM metrics of a synthetic volume, scaled to [0, 1] and cropped to the box of the brain."""
        brain_mask, size = self.regions.brain[self._box], self.regions.brain.size
        x = scaled * brain_mask
        values: MetricValues = {"ms_ssim/brain": multi_scale_ssim(x, self._brain)}
        gradients = gradient_similarity(gradient_magnitude(x), self._gradient)
        for name in REGIONS:
            mask = getattr(self.regions, name)
            known = mask is not None and mask.any()
            values[f"gmsd/{name}"] = float(gradients[mask[self._box]].std()) if known else None
        moments, product = Moments.of(x), local_mean(x * self._brain)
        similarity = ssim_of_moments(moments, self._moments, product, 1.0)
        values["ssim/brain"] = float(similarity[brain_mask].mean())
        if self.regions.tumour is None:
            return values
        if self._inner is not None:
            inner = self._inner
            values["ssim/tumour"] = float(similarity[self._tumour_mask].mean())
            x_tumour = (x * self._tumour_mask)[inner]
            tumour_moments, tumour_product = Moments.of(x_tumour), local_mean(x_tumour * self._tumour)
            values["challenge_ssim/tumour"] = _whole_volume_ssim(
                x_tumour, self._tumour, (tumour_moments, self._tumour_moments, tumour_product), size
            )
            moments = moments.without(tumour_moments, inner)
            product = _subtract(product, tumour_product, inner)
        if self._has_cavity:
            healthy = x * self._healthy_mask
            moments, product = Moments.of(healthy), local_mean(healthy * self._brain)
        if self._healthy_mask.any():
            values["ssim/healthy"] = float(similarity[self._healthy_mask].mean())
            values["challenge_ssim/healthy"] = _whole_volume_ssim(
                x * self._healthy_mask,
                self._brain * self._healthy_mask,
                (moments, self._healthy_moments, product),
                size,
            )
        return values


def matched(synthetic: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The synthetic voxels (N,), scaled to the median of the real ones; unchanged if their median is 0."""
    median = float(np.median(synthetic))
    return synthetic * (float(np.median(real)) / median if median > 0 else 1.0)


def error_metrics(error: np.ndarray, peak: float) -> tuple[float, float]:
    """(MAE in the units of `error`, PSNR in dB, at most 100) of the differences of some voxels, float64."""
    mean_square = np.square(error).mean()
    psnr = float(min(100.0, 10 * np.log10(peak**2 / mean_square))) if mean_square > 0 else 100.0
    return float(np.abs(error).mean()), psnr


def scale_to_unit(volume: np.ndarray) -> np.ndarray:
    """Clip to the volume's own 0.5 and 99.5 percentiles and scale to [0, 1], float32.

    Percentiles include the background, as the challenge computes them. A constant volume becomes 0.
    """
    low, high = np.percentile(volume, PERCENTILES)
    if high <= low:
        return np.zeros(volume.shape, np.float32)
    return ((np.clip(volume, low, high) - low) / (high - low)).astype(np.float32)


def challenge_ssim(synthetic: np.ndarray, real: np.ndarray, mask: np.ndarray) -> float | None:
    """SSIM by the challenge's convention.

    Args:
        synthetic: Volume scaled to [0, 1].
        real: Volume scaled to [0, 1].
        mask: Region; all other voxels count as 0 in both volumes.

    Returns:
        Mean of the SSIM map over the whole volume; None if both volumes are 0 in the mask. The data range
        is that of the pair after masking (torchmetrics' default).
    """
    box = bounding_box(mask, RADIUS)
    x, y = ((v * mask)[box].astype(np.float64) for v in (synthetic, real))
    return _whole_volume_ssim(x, y, (Moments.of(x), Moments.of(y), local_mean(x * y)), mask.size)


def _whole_volume_ssim(
    x: np.ndarray, y: np.ndarray, moments: tuple[Moments, Moments, np.ndarray], size: int
) -> float | None:
    """Mean over `size` voxels of an SSIM map that is known in a box and 1 outside of it."""
    data_range = float(max(np.ptp(x), np.ptp(y)))
    if data_range == 0:
        return None
    inner = ssim_of_moments(*moments, data_range)
    return float((inner.sum() + (size - inner.size)) / size)


def ssim_map(x: np.ndarray, y: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM at every voxel of two volumes, float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return ssim_of_moments(Moments.of(x), Moments.of(y), local_mean(x * y), data_range)


def ssim_of_moments(x: Moments, y: Moments, product: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM map from local moments of both volumes and the local mean of their product."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_product = x.mean * y.mean
    mean_squares = x.mean * x.mean + y.mean * y.mean
    variances = x.square + y.square - mean_squares
    mean_squares += c1
    variances += c2
    similarity = product - mean_product
    similarity *= 2
    similarity += c2
    mean_product *= 2
    mean_product += c1
    similarity *= mean_product
    mean_squares *= variances
    similarity /= mean_squares
    return similarity


def local_mean(volume: np.ndarray) -> np.ndarray:
    """Mean in a Gaussian window around every voxel; the volume is reflected at its borders."""
    from scipy.ndimage import correlate1d

    for axis in range(volume.ndim):
        volume = correlate1d(volume, _WINDOW, axis)
    return volume


def _subtract(whole: np.ndarray, part: np.ndarray, inner: tuple[slice, ...]) -> np.ndarray:
    result = whole.copy()
    result[inner] -= part
    return result


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices of the mask's bounding box, widened by `margin` up to the array's borders.

    Empty mask: the whole array.
    """
    bounds = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        first, last = (int(hit[0]), int(hit[-1])) if len(hit) else (0, mask.shape[axis] - 1)
        bounds.append(slice(max(0, first - margin), min(mask.shape[axis], last + 1 + margin)))
    return tuple(bounds)


def direction(name: str) -> int:
    """+1 if higher values of a metric are better, -1 if lower values are."""
    return -1 if name.startswith(("mae", "nmae", "matched_nmae", "hd95", "gmsd")) else 1
