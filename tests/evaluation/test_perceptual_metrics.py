"""Multi-scale SSIM against torchmetrics, gradient similarity against its formula, and the order of degradations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from brasyn_dist.evaluation.image_metrics import ReferenceVolume, direction
from brasyn_dist.evaluation.perceptual_metrics import (
    gradient_magnitude,
    gradient_similarity,
    multi_scale_ssim,
    padded_slices,
)


def volume(seed: int = 0, shape: tuple[int, int, int] = (60, 180, 4)) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).random(shape), 1.5) * 3 % 1


def test_multi_scale_ssim_equals_torchmetrics():
    x, y = volume(0), np.clip(volume(0) + 0.2 * volume(1), 0, 1)
    slices = [torch.from_numpy(padded_slices(v))[:, None] for v in (x, y)]
    assert slices[0].shape == (4, 1, 176, 180)
    expected = multiscale_structural_similarity_index_measure(*slices, data_range=1.0, reduction="none")
    assert multi_scale_ssim(x, y) == pytest.approx(float(expected.mean()), abs=1e-4)
    assert multi_scale_ssim(x, x) == pytest.approx(1, abs=1e-6)


def test_gradient_of_a_ramp_is_its_slope():
    ramp = 0.25 * np.arange(8.0)[:, None, None] + np.zeros((8, 8, 8))
    assert gradient_magnitude(ramp)[2:-2, 2:-2, 2:-2] == pytest.approx(0.25)
    x, y = np.full((2, 2, 2), 0.3), np.full((2, 2, 2), 0.1)
    assert gradient_similarity(x, y) == pytest.approx((0.06 + 0.0026) / (0.1 + 0.0026))


def test_a_blurred_volume_is_worse_than_a_sharp_one_with_the_same_mean():
    """MAE prefers blur to small noise here; the perceptual metrics do not."""
    real = (1000 * volume(2, (48, 48, 40)) + 100).astype(np.int16)
    labels = np.zeros(real.shape, np.uint8)
    labels[20:30, 20:30, 15:25] = 1
    blurred = gaussian_filter(real.astype(float), 2)
    reference = ReferenceVolume(real, labels)
    same, worse = reference.scores(real), reference.scores(blurred)
    for name in ("ms_ssim/brain", "gmsd/brain", "gmsd/healthy", "gmsd/tumour"):
        assert direction(name) * worse[name] < direction(name) * same[name] - 0.01, name
    assert same["gmsd/brain"] == pytest.approx(0) and direction("gmsd/brain") == -1


def test_regions_without_labels_are_unknown():
    real = (1000 * volume(3, (24, 24, 12)) + 100).astype(np.int16)
    scores = ReferenceVolume(real, None).scores(real)
    assert scores["gmsd/tumour"] is None and scores["gmsd/healthy"] is None and scores["gmsd/brain"] == 0
