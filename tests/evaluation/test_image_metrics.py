"""Image scores against torchmetrics, scikit-image's own numbers, and arithmetic by hand."""

import numpy as np
import pytest
import torch

from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.image_metrics import (
    ReferenceVolume,
    bounding_box,
    challenge_ssim,
    error_metrics,
    regions_of,
    scale_to_unit,
    ssim_map,
)


@pytest.fixture(scope="module")
def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(synthetic, real, labels): a blob-shaped brain with background around it."""
    random_numbers = np.random.default_rng(0)
    x, y, z = np.mgrid[-1:1:40j, -1:1:44j, -1:1:36j]
    brain = x**2 / 0.35 + y**2 / 0.4 + z**2 / 0.3 < 1
    real = (600 + 200 * np.sin(5 * x + 3 * y) + 60 * random_numbers.standard_normal(x.shape)) * brain
    synthetic = (real + 80 * random_numbers.standard_normal(x.shape)) * brain
    labels = (((x - 0.2) ** 2 + y**2 + z**2 < 0.05) & brain).astype(np.uint8) * 2
    return np.rint(synthetic).clip(0).astype(np.int16), np.rint(real).clip(1 * brain).astype(np.int16), labels


def torchmetrics_ssim(x: np.ndarray, y: np.ndarray) -> float:
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    tensors = [torch.from_numpy(v.astype(np.float64))[None, None] for v in (x, y)]
    return float(StructuralSimilarityIndexMeasure()(*tensors))


@pytest.mark.parametrize("region", ["tumour", "healthy"])
def test_challenge_ssim_equals_torchmetrics_on_the_whole_volume(volumes, region: str):
    """Also tests the crop: torchmetrics processes every voxel, the package the bounding box only."""
    synthetic, real, labels = volumes
    mask = getattr(regions_of(real, labels), region)
    expected = torchmetrics_ssim(scale_to_unit(synthetic) * mask, scale_to_unit(real) * mask)
    assert ReferenceVolume(real, labels).scores(synthetic)[f"challenge_ssim/{region}"] == pytest.approx(
        expected, abs=1e-6
    )


def test_region_ssim_equals_torchmetrics_map_inside_the_region(volumes):
    from torchmetrics.functional.image import structural_similarity_index_measure

    synthetic, real, labels = volumes
    brain = real > 0
    x, y = (
        torch.from_numpy(scale_to_unit(v).astype(np.float64) * brain)[None, None] for v in (synthetic, real)
    )
    _, full = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    expected = full[0, 0].numpy()[labels > 0].mean()
    assert ReferenceVolume(real, labels).scores(synthetic)["ssim/tumour"] == pytest.approx(expected, abs=1e-6)


def test_mae_and_psnr_by_hand():
    real, synthetic = np.array([[[0, 10, 20, 30]]]), np.array([[[5, 12, 20, 26]]])
    mask = np.array([[[False, True, True, True]]])
    mae, psnr = error_metrics((synthetic - real)[mask], 30)
    assert mae == pytest.approx((2 + 0 + 4) / 3)
    assert psnr == pytest.approx(10 * np.log10(900 / ((4 + 0 + 16) / 3)))
    assert error_metrics(np.zeros(3), 30) == (0.0, 100.0)


def slow_ssim_scores(synthetic, real, labels) -> dict[str, float]:
    """scikit-image on whole volumes, without cropping and without shared moments."""
    from skimage.metrics import structural_similarity

    def ssim(x, y, mask, data_range):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        pair = ((v * mask).astype(np.float64) for v in (x, y))
        return structural_similarity(*pair, data_range=data_range, **options)[1]

    x, y = scale_to_unit(synthetic), scale_to_unit(real)
    brain = real > 0
    regions = {"brain": brain, "healthy": brain & (labels == 0), "tumour": brain & (labels > 0)}
    whole = ssim(x, y, brain, 1.0)
    scores = {f"ssim/{name}": whole[mask].mean() for name, mask in regions.items()}
    for name in ("healthy", "tumour"):
        mask = regions[name]
        data_range = max(np.ptp(x * mask), np.ptp(y * mask))
        scores[f"challenge_ssim/{name}"] = ssim(x, y, mask, data_range).mean()
    return scores


@pytest.mark.parametrize("place", ["inside", "at the border of the volume"])
def test_shared_moments_and_crops_change_nothing(volumes, place: str):
    synthetic, real, labels = volumes
    if place != "inside":  # brain and tumour end at the border of the volume
        first = bounding_box(labels > 0, 0)[0].start + 4
        synthetic, real, labels = (v[first:] for v in volumes)
        assert labels[0].any()
    reference = ReferenceVolume(real, labels)
    for volume in (synthetic, real + (real > 0) * 25, np.roll(synthetic, 3, axis=1)):
        found = reference.scores(volume)
        for name, value in slow_ssim_scores(volume, real, labels).items():
            assert found[name] == pytest.approx(value, abs=1e-9), name


def test_an_empty_real_volume_is_an_error():
    with pytest.raises(DataError, match="empty"):
        ReferenceVolume(np.zeros((9, 9, 9)), None)


def test_equal_volumes_score_perfectly(volumes):
    _, real, labels = volumes
    scores = ReferenceVolume(real, labels).scores(real)
    assert scores["mae/brain"] == 0 and scores["ssim/tumour"] == pytest.approx(1)
    assert scores["challenge_ssim/tumour"] == pytest.approx(1)


def test_normalised_and_matched_scores(volumes):
    """A wrong intensity scale changes MAE and PSNR, but not the matched scores."""
    synthetic, real, labels = volumes
    reference = ReferenceVolume(real, labels)
    found, scaled = reference.scores(synthetic), reference.scores(synthetic * 3)
    brain = real > 0
    peak = np.percentile(real[brain], 99.5)
    assert found["nmae/brain"] == pytest.approx(np.abs(synthetic - real)[brain].mean() / peak)
    matched = synthetic * np.median(real[brain]) / np.median(synthetic[brain])
    assert found["matched_nmae/brain"] == pytest.approx(np.abs(matched - real)[brain].mean() / peak)
    assert scaled["nmae/brain"] > 1.5 * found["nmae/brain"]
    for name in ("matched_nmae/brain", "matched_psnr/brain"):
        assert scaled[name] == pytest.approx(found[name])


def test_without_segmentation_regions_are_unknown_not_zero(volumes):
    synthetic, real, _ = volumes
    scores = ReferenceVolume(real, None).scores(synthetic)
    assert scores["mae/brain"] is not None and scores["ssim/brain"] is not None
    assert {k for k, v in scores.items() if v is None} == {
        f"{s}/{r}"
        for s in ("mae", "nmae", "psnr", "ssim", "challenge_ssim", "gmsd")
        for r in ("healthy", "tumour")
    }


def test_empty_tumour_has_no_score(volumes):
    synthetic, real, labels = volumes
    scores = ReferenceVolume(real, np.zeros_like(labels)).scores(synthetic)
    assert scores["ssim/tumour"] is None and scores["challenge_ssim/tumour"] is None
    assert scores["challenge_ssim/healthy"] is not None


def test_noise_in_the_tumour_fools_the_challenge_form_only(volumes):
    """The flaw (thesis, appendix A): background dominates the challenge's mean."""
    _, real, labels = volumes
    noisy = real.copy()
    noisy[labels > 0] = np.random.default_rng(1).integers(1, 1200, int((labels > 0).sum()))
    scores = ReferenceVolume(real, labels).scores(noisy)
    assert scores["challenge_ssim/tumour"] > 0.97 and scores["ssim/tumour"] < 0.5


def test_constant_volume_scales_to_zero():
    assert not scale_to_unit(np.full((4, 4, 4), 7)).any()
    assert challenge_ssim(np.zeros((20, 20, 20)), np.zeros((20, 20, 20)), np.ones((20, 20, 20), bool)) is None
    assert ssim_map(np.ones((20, 20, 20)), np.ones((20, 20, 20)), 1.0) == pytest.approx(1)
