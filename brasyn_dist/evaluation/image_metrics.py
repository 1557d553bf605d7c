"""Scores of a synthetic volume against the real one: pure functions of 3-D arrays.

    challenge SSIM   each image clipped to its own 0.5 - 99.5 percentiles and scaled to [0, 1]; all but the region zeroed;
                     mean of the 3-D SSIM map over the whole volume (method, section 8). Dominated by background.
    region SSIM      the same map of the brain, averaged over the region only.
    MAE, PSNR        over the region, in the units of the files; PSNR's peak is the real brain's 99.5th percentile.

The SSIM map is that of torchmetrics' defaults, which the challenge uses (Gaussian window of sigma 1.5 and 11 voxels, K 0.01 /
0.03, data range of the pair), computed by scikit-image: its filters are separable, 11 + 11 + 11 instead of 11 x 11 x 11
operations a voxel. It is computed on the brain's bounding box with a margin; outside, both images are 0 and the map is 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MARGIN = 12
"""Voxels around the bounding box: more than twice the window's radius of 5, so that borders see zeros only."""
PERCENTILES = (0.5, 99.5)

Scores = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Regions:
    """Boolean masks (x, y, z). `tumour` and `healthy` are None where the case has no segmentation."""

    brain: np.ndarray
    tumour: np.ndarray | None
    healthy: np.ndarray | None

    def items(self) -> list[tuple[str, np.ndarray | None]]:
        return [("brain", self.brain), ("healthy", self.healthy), ("tumour", self.tumour)]


def regions_of(real_xyz: np.ndarray, labels_xyz: np.ndarray | None) -> Regions:
    """Brain: foreground of the real volume. Tumour: labels above 0 (WT) within it; healthy: the rest."""
    brain = real_xyz > 0
    if labels_xyz is None:
        return Regions(brain, None, None)
    tumour = (labels_xyz > 0) & brain
    return Regions(brain, tumour, brain & ~tumour)


def score_volume(synthetic_xyz: np.ndarray, real_xyz: np.ndarray, labels_xyz: np.ndarray | None) -> Scores:
    """All scores of one volume by name, such as `mae/brain`; None where the region is unknown or empty."""
    regions = regions_of(real_xyz, labels_xyz)
    inside = crop_to(regions.brain, MARGIN)
    scaled = [scale_to_unit(v) for v in (synthetic_xyz, real_xyz)]
    peak = float(np.percentile(real_xyz[regions.brain], 99.5))
    x, y = scaled
    brain_map = ssim_map((x * regions.brain)[inside], (y * regions.brain)[inside], 1.0)
    scores: Scores = {}
    for name, mask in regions.items():
        names = [
            f"{score}/{name}" for score in ("mae", "psnr", "ssim", *(["challenge_ssim"] * (name != "brain")))
        ]
        scores |= dict.fromkeys(names)
        if mask is not None and mask.any():
            scores[f"mae/{name}"] = mae(synthetic_xyz, real_xyz, mask)
            scores[f"psnr/{name}"] = psnr(synthetic_xyz, real_xyz, mask, peak)
            scores[f"ssim/{name}"] = float(brain_map[mask[inside]].mean())
            if name != "brain":
                scores[f"challenge_ssim/{name}"] = challenge_ssim(x, y, mask)
    return scores


def mae(synthetic: np.ndarray, real: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error over the mask, in the units of the volumes."""
    return float(np.abs(synthetic[mask].astype(np.float64) - real[mask]).mean())


def psnr(synthetic: np.ndarray, real: np.ndarray, mask: np.ndarray, peak: float) -> float:
    """Peak signal-to-noise ratio over the mask, in dB; at most 100 (equal volumes)."""
    error = np.square(synthetic[mask].astype(np.float64) - real[mask]).mean()
    return float(min(100.0, 10 * np.log10(peak**2 / error))) if error > 0 else 100.0


def scale_to_unit(volume: np.ndarray) -> np.ndarray:
    """Clip to the volume's own 0.5 and 99.5 percentiles (background included, as the challenge does), scale to [0, 1]."""
    low, high = np.percentile(volume, PERCENTILES)
    if high <= low:
        return np.zeros(volume.shape, np.float32)
    return ((np.clip(volume, low, high) - low) / (high - low)).astype(np.float32)


def challenge_ssim(synthetic: np.ndarray, real: np.ndarray, mask: np.ndarray) -> float | None:
    """SSIM by the challenge's convention, of volumes scaled to [0, 1]. None if both are 0 in the mask.

    The data range is that of the pair after zeroing, torchmetrics' default. Computed on the mask's bounding box: what is
    cropped away is 0 in both and adds ones to the mean.
    """
    inside = crop_to(mask, MARGIN)
    x, y = ((v * mask)[inside] for v in (synthetic, real))
    data_range = float(max(np.ptp(x), np.ptp(y)))
    if data_range == 0:
        return None
    inner = ssim_map(x, y, data_range)
    return float((inner.sum() + (mask.size - inner.size)) / mask.size)


def ssim_map(x: np.ndarray, y: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM at every voxel of two volumes, float64."""
    from skimage.metrics import structural_similarity

    _, full = structural_similarity(
        x.astype(np.float64),
        y.astype(np.float64),
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return full


def crop_to(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Slices of the mask's bounding box, widened by `margin` as far as the volume goes."""
    bounds = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        first, last = (int(hit[0]), int(hit[-1])) if len(hit) else (0, mask.shape[axis] - 1)
        bounds.append(slice(max(0, first - margin), min(mask.shape[axis], last + 1 + margin)))
    return tuple(bounds)


def better(name: str) -> int:
    """+1 where larger is better, -1 where smaller is."""
    return -1 if name.startswith(("mae", "hd95")) else 1


DESCRIPTIONS: Mapping[str, str] = {
    "mae": "mean absolute error, in the units of the files",
    "psnr": "peak signal-to-noise ratio in dB, peak = 99.5th percentile of the real brain",
    "ssim": "structural similarity, averaged over the region only",
    "challenge_ssim": "structural similarity as the challenge computes it, over the whole volume with all but the region zeroed; "
    "background dominates it",
}
