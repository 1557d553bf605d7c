"""Baselines that need no network.

    mean of the available   z-scored with the data set's statistics, averaged, put on the target's scale
    copy of one modality    z-scored, put on the target's scale; the best is chosen in hindsight (tables.py)

Both follow the background rule of inference: 0 where at least two of the available modalities are background.
"""

from collections.abc import Mapping

import numpy as np

from brasyn_dist.preprocessing.statistics import Statistics

MEAN = "mean of available"
COPY = "copy of "


def baseline_volumes(
    available: Mapping[str, np.ndarray], target: str, statistics: Statistics
) -> dict[str, np.ndarray]:
    """Baselines of one case.

    Args:
        available: The case's other modalities by name, integers (x, y, z).
        target: Modality to synthesise.
        statistics: Of the z-scores, for all of these modalities.

    Returns:
        Volumes (x, y, z) float32 by name of the baseline, in the units of the files.
    """
    background = background_rule(np.stack(list(available.values())))
    copies = {name: rescale(volume, name, target, statistics) for name, volume in available.items()}
    volumes = {MEAN: np.mean(list(copies.values()), axis=0), **{COPY + n: v for n, v in copies.items()}}
    return {name: np.where(background, 0, v).astype(np.float32) for name, v in volumes.items()}


def rescale(volume: np.ndarray, source: str, target: str, statistics: Statistics) -> np.ndarray:
    """Intensities of `source` on the scale of `target`, by z-scores; clipped as in training, at least 0."""
    a, b = statistics.modalities[source], statistics.modalities[target]
    score = (np.clip(volume, 0, a.clip_max).astype(np.float32) - a.mean) / a.std
    return np.clip(score * b.std + b.mean, 0, b.clip_max)


def background_rule(available_MXYZ: np.ndarray) -> np.ndarray:
    """(x, y, z) bool: voxels that are background in at least two available modalities (or the only one)."""
    return np.count_nonzero(available_MXYZ <= 0, axis=0) >= min(2, len(available_MXYZ))
