"""Augmentation: pure functions of (seed, k, row), of the right spread, applied to the right axis; off by
default."""

import numpy as np
import pytest
import torch

from brasyn_dist.brats import VIEWS
from brasyn_dist.config import AugmentationConfig, load_config
from brasyn_dist.data.loading.augmentation import mirrored, sample_augmentation
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.errors import ConfigError
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.slicing import extract_slices
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.training_data import DeviceBatch

ALL = AugmentationConfig(mirror=0.5, intensity=0.7, contrast=0.1)


def test_nothing_by_default():
    assert sample_augmentation(load_config(None).augmentation, 0, 0, 8) is None


def test_rows_depend_on_seed_batch_and_position_alone():
    whole = sample_augmentation(ALL, 3, 5, 12)
    longer = sample_augmentation(ALL, 3, 5, 20)
    assert whole is not None and longer is not None
    np.testing.assert_array_equal(longer[0:12].factor_BM, whole.factor_BM)
    np.testing.assert_array_equal(longer[0:12].mirror_B, whole.mirror_B)
    for seed, k in ((4, 5), (3, 6)):
        other = sample_augmentation(ALL, seed, k, 12)
        assert other is not None and (other.factor_BM != whole.factor_BM).all()


def test_factors_are_log_uniform_and_shared_as_the_options_say():
    drawn = sample_augmentation(ALL, 0, 0, 20_000)
    assert drawn is not None
    logarithm = np.log(drawn.factor_BM.astype(np.float64))
    assert abs(drawn.mirror_B.mean() - 0.5) < 0.02
    # A uniform variable on [-w, w] has variance w^2 / 3.
    assert logarithm.var(0) == pytest.approx((0.7**2 + 0.1**2) / 3, rel=0.05)
    assert np.abs(logarithm).max() < 0.8
    own = logarithm - logarithm.mean(1, keepdims=True)
    assert own.var() == pytest.approx(0.75 * 0.1**2 / 3, rel=0.05)
    assert np.corrcoef(drawn.mirror_B, logarithm[:, 0])[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("view", VIEWS)
def test_mirroring_a_slice_is_slicing_the_mirrored_volume(view: str):
    volume = np.random.default_rng(0).random((4, 5, 6))
    index = {"sagittal": 1}.get(view, 2)
    source = extract_slices(volume, view)[index]
    # A sagittal slice of the mirrored head is the opposite slice of the head, itself unchanged.
    expected = extract_slices(volume[::-1], view)[len(volume) - 1 - index if view == "sagittal" else index]
    view_B = torch.tensor([VIEWS.index(view)] * 2)
    actual = mirrored(torch.from_numpy(np.stack([source, source])), torch.tensor([True, False]), view_B)
    np.testing.assert_array_equal(actual[0], expected)
    np.testing.assert_array_equal(actual[1], source)


def slice_batch(
    planes: torch.Tensor, labels: torch.Tensor, medians: torch.Tensor, context: int = 0
) -> SliceBatch:
    """Global batch 0 of two axial slices; each neighbour is the slice itself."""
    return SliceBatch(
        0,
        slice(0, 2),
        planes,
        labels,
        torch.ones(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        medians,
        ["", ""],
        planes[:, None].expand(-1, 2 * context, -1, -1, -1),
    )


def test_batches_are_scaled_before_clipping_and_background_stays():
    planes = torch.tensor([0, 100, 8000], dtype=torch.int16).expand(2, 4, 3, 3).clone()
    labels = torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.uint8).expand(2, 3, 3).clone()
    batch = slice_batch(planes, labels, torch.ones(2, 4))
    normaliser = Normaliser(PUBLISHED, dtype=torch.float64)
    plain = DeviceBatch.load(batch, normaliser)
    drawn = sample_augmentation(AugmentationConfig(mirror=1.0, intensity=0.5), 1, 0, 2)
    assert drawn is not None
    changed = DeviceBatch.load(batch, normaliser, drawn)
    scaled = (planes.double() * torch.from_numpy(drawn.factor_BM).double()[:, :, None, None]).numpy()
    for m in range(4):
        clip, mean, std = (PUBLISHED.column(c)[m] for c in ("clip_max", "mean", "std"))
        expected = np.where(scaled[:, m] > 0, (np.minimum(scaled[:, m], clip) - mean) / std, -1.0)
        np.testing.assert_allclose(changed.real_BMHW[:, m], expected[:, ::-1], rtol=1e-12)
    np.testing.assert_array_equal(changed.labels_BHW, plain.labels_BHW.flip(1))


@pytest.mark.parametrize("option", ["mirror=1.5", "intensity=-1", "contrast=-0.1"])
def test_impossible_options_are_refused(option: str):
    with pytest.raises(ConfigError, match="augmentation"):
        load_config(None, [f"augmentation.{option}"])
