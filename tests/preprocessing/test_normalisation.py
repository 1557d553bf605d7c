"""Normalisation on the device against plain numpy."""

import dataclasses

import numpy as np
import pytest
import torch

from brasyn_dist.preprocessing.normalisation import (
    BACKGROUND_VALUE,
    CASE_CLIP,
    Normaliser,
    foreground,
    mask_missing,
)
from brasyn_dist.preprocessing.statistics import PUBLISHED, ModalityStatistics


def planes(dtype=np.int16) -> np.ndarray:
    values = np.random.default_rng(0).integers(-200, 12000, (2, 4, 9, 7))
    values[:, :, :3] = 0
    values[0, 0, 3, :3] = [1, 0, -5]
    return values.astype(dtype)


def expected(values: np.ndarray, statistics=PUBLISHED) -> np.ndarray:
    result = np.empty(values.shape)
    for m, (clip, mean, std) in enumerate(
        zip(statistics.column("clip_max"), statistics.column("mean"), statistics.column("std"))
    ):
        plane = np.clip(values[:, m].astype(np.float64), 0, clip)
        result[:, m] = np.where(plane == 0, -1.0, (plane - mean) / std)
    return result


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_equals_numpy(dtype):
    normaliser = Normaliser(PUBLISHED, dtype=torch.float64)
    values = planes(dtype)
    np.testing.assert_allclose(
        normaliser(torch.from_numpy(values)).numpy(), expected(values), rtol=0, atol=1e-13
    )


def test_float32_on_the_device_by_default():
    normalised = Normaliser(PUBLISHED)(torch.from_numpy(planes()))
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised.numpy(), expected(planes()), rtol=0, atol=1e-6)


def test_background_and_negative_values_are_exactly_minus_one():
    values = planes()
    normalised = Normaliser(PUBLISHED)(torch.from_numpy(values)).numpy()
    assert (normalised[values <= 0] == BACKGROUND_VALUE).all()
    assert normalised[values > 0].min() > -0.84


def test_denormalise_is_the_inverse_up_to_clipping():
    normaliser = Normaliser(PUBLISHED, dtype=torch.float64)
    values = planes()
    for modality, clip in enumerate(PUBLISHED.column("clip_max")):
        plane = torch.from_numpy(values[:, modality])
        restored = normaliser.denormalise(normaliser(torch.from_numpy(values))[:, modality], modality)
        inside = plane > 0
        torch.testing.assert_close(restored[inside], plane[inside].double().clamp(max=clip))
        assert restored.min() >= 0


def test_denormalise_does_not_round_in_the_networks_precision():
    image = torch.tensor([6.5], dtype=torch.bfloat16)
    expected_intensity = 6.5 * PUBLISHED.column("std")[0] + PUBLISHED.column("mean")[0]
    assert Normaliser(PUBLISHED).denormalise(image, 0).item() == pytest.approx(expected_intensity, rel=1e-6)


def test_data_range_is_the_clip_maximum_in_z_scores():
    ranges = Normaliser(PUBLISHED, dtype=torch.float64).range_M
    expected_ranges = np.array(PUBLISHED.column("clip_max")) / np.array(PUBLISHED.column("std"))
    np.testing.assert_allclose(ranges.numpy(), expected_ranges)


def test_mask_missing():
    x = torch.randn(2, 4, 3, 3)
    available = torch.tensor([[True, False, True, True], [False, False, True, False]])
    masked = mask_missing(x, available)
    assert torch.equal(masked[available], x[available])
    assert (masked[~available] == BACKGROUND_VALUE).all()


def test_foreground_also_where_it_is_darker_than_background():
    """With a mean over one std, intensity 1 lies below -1: foreground is not what exceeds background."""
    narrow = {name: ModalityStatistics(4000.0, 1500.0, 500.0, 0) for name in PUBLISHED.modalities}
    normaliser = Normaliser(dataclasses.replace(PUBLISHED, modalities=narrow))
    values = torch.from_numpy(planes())
    normalised = normaliser(values)
    assert (normalised[values > 0] < BACKGROUND_VALUE).any()
    assert torch.equal(foreground(normalised), values > 0)


def test_slices_of_their_own_range_equal_numpy():
    """HF-GAN's normalisation: background to -1, each slice's maximum to 1, linear between."""
    values = planes()
    values[1, 2] = 0  # a slice without brain
    normaliser = Normaliser(PUBLISHED, dtype=torch.float64, mode="slice")
    normalised = normaliser(torch.from_numpy(values)).numpy()
    for b in range(2):
        for m in range(4):
            plane = np.clip(values[b, m].astype(np.float64), 0, None)
            np.testing.assert_allclose(
                normalised[b, m], 2 * plane / max(plane.max(), 1) - 1, rtol=0, atol=1e-13
            )
            assert normalised[b, m].max() == (1 if plane.any() else -1)
    assert (normalised[values <= 0] == BACKGROUND_VALUE).all()
    assert foreground(Normaliser(PUBLISHED, mode="slice")(torch.from_numpy(values))).equal(
        torch.from_numpy(values > 0)
    )
    assert normaliser.range_M.tolist() == [2.0] * 4 and normaliser.window == (-1.0, 1.0)


def test_a_slice_of_its_own_range_comes_back_scaled_by_the_others():
    """Exact where the missing slice is as bright, by its clip maximum, as the available ones are on the mean."""
    clip = np.array(PUBLISHED.column("clip_max"))
    pattern = np.array([[0.0, 0.25], [0.5, 1.0]])
    values = torch.from_numpy(np.stack([pattern * c for c in clip * [0.3, 0.5, 0.4, 0.4]])[None])
    normaliser = Normaliser(PUBLISHED, dtype=torch.float64, mode="slice")
    image = normaliser(values)[:, 2]
    restored = normaliser.denormalise(image, 2, values, (0, 1, 3))
    np.testing.assert_allclose(restored.numpy(), values[:, 2].numpy(), rtol=1e-12)
    # What is not available is not looked at.
    spoilt = values.clone()
    spoilt[:, 2] = 1e6
    assert restored.equal(normaliser.denormalise(image, 2, spoilt, (0, 1, 3)))
    with pytest.raises(ValueError, match="synthesised from"):
        normaliser.denormalise(image, 2)


def test_a_case_is_divided_by_its_medians():
    values = planes()
    medians = np.array([[2000.0, 3000, 4000, 5000], [500, 10, 700, 900]])
    normaliser = Normaliser(PUBLISHED, dtype=torch.float64, mode="case")
    normalised = normaliser(torch.from_numpy(values), medians_BM=torch.from_numpy(medians))
    relative = np.clip(values / medians[:, :, None, None], 0, CASE_CLIP)
    np.testing.assert_allclose(normalised.numpy(), relative - 1, rtol=0, atol=1e-12)
    assert (normalised.numpy()[values <= 0] == BACKGROUND_VALUE).all()
    assert foreground(normalised).numpy().sum() == (values > 0).sum()
    np.testing.assert_allclose(
        normaliser.denormalise(normalised[:, 1], 1).numpy(), relative[:, 1], atol=1e-12
    )
    # Which scanner it was does not show.
    factor = torch.tensor([[2.0, 3, 4, 5]]).expand(2, 4)
    louder = normaliser(torch.from_numpy(values), factor, torch.from_numpy(medians) * factor)
    torch.testing.assert_close(louder, normalised, rtol=0, atol=1e-12)
    assert normaliser.range_M.tolist() == [3.0] * 4


def test_a_case_cannot_be_normalised_without_its_medians():
    with pytest.raises(ValueError, match="medians"):
        Normaliser(PUBLISHED, mode="case")(torch.from_numpy(planes()))
