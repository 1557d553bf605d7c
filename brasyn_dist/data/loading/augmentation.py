"""Augmentation: a pure function of (seed, k, position in global batch k).

    (seed, k) --sample_augmentation--> Augmentation --> slices are scaled, normalised and mirrored (device)
    (seed, k) --crop_shifts--> shifts of the crop from the middle of the slice, applied while reading (host)

The intensity scales of scanners differ much more than those of the scans of one subject. A common factor for
all modalities of a slice exposes a network that is trained on few subjects to other scales.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brasyn_dist.brats import BRATS, VIEWS
from brasyn_dist.config import AugmentationConfig
from brasyn_dist.data.loading.sampler import Purpose, below, random_words


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of the rows of a global batch (B), or of a part of it."""

    mirror_B: np.ndarray
    """(B,) bool: exchange left and right."""
    factor_BM: np.ndarray
    """(B, M) float32 by which intensities are multiplied."""

    def __getitem__(self, rows: slice) -> "Augmentation":
        return Augmentation(self.mirror_B[rows], self.factor_BM[rows])


def sample_augmentation(
    config: AugmentationConfig, seed: int, k: int, global_batch_size: int, modalities: int = len(BRATS)
) -> Augmentation | None:
    """Augmentation of the slices of global batch k. None if all augmentations are switched off."""
    if not (config.mirror or config.intensity or config.contrast):
        return None

    def words(first: int, count: int) -> np.ndarray:
        """(G, count) uniform in [0, 1), from blocks of four words that begin with number `first`."""
        blocks = range(first, first - (-count // 4))
        drawn = [random_words(seed, Purpose.AUGMENTATION, global_batch_size, k, block) for block in blocks]
        return unit(np.concatenate(drawn, axis=1)[:, :count])

    whole, each = words(0, 2), words(1, modalities)
    logarithm_BM = config.intensity * (2 * whole[:, :1] - 1) + config.contrast * (2 * each - 1)
    return Augmentation(whole[:, 1] < config.mirror, np.exp(logarithm_BM).astype(np.float32))


def crop_shifts(
    crop: tuple[int, int], image_size: tuple[int, int], seed: int, k: int, global_batch_size: int
) -> np.ndarray:
    """(G, 2) int64: pixels by which the crop of each slice lies below and right of the slice's middle.

    All positions inside the `image_size` pixels in the middle of the slice are equally likely.
    """
    words = random_words(seed, Purpose.CROPS, global_batch_size, k)[:, :2]
    room = np.array(image_size) - np.array(crop)
    return below(words, room + 1) - room // 2


def unit(words: np.ndarray) -> np.ndarray:
    """Random words as float64 in [0, 1), with 53 bits each."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mirrored(x: Tensor, mirror_B: Tensor, view_B: Tensor) -> Tensor:
    """`x` (B, ..., H, W) with left and right exchanged where `mirror_B` is True.

    H is the left-right axis of axial and coronal slices; sagittal slices have none and stay as they are.
    """
    flip_B = mirror_B & (view_B != VIEWS.index("sagittal"))
    return torch.where(flip_B.view(-1, *[1] * (x.ndim - 1)), x.flip(-2), x)
