"""The SSIM map against scikit-image and torchmetrics, its region mean against numpy, its gradient against differences."""

import numpy as np
import pytest
import torch

from brasyn_dist.losses.ssim import at_least_float32, gaussian, gaussian_blur, region_mean, ssim_map


def images(
    size: int = 40, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three pairs: similar, unrelated, equal; and their data ranges."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, size, size, generator=noise, dtype=torch.float64)
    y = torch.stack(
        [x[0] + 0.2 * torch.randn(1, size, size, generator=noise, dtype=torch.float64), x[1].flip(-1), x[2]]
    )
    return x.to(dtype), y.to(dtype), torch.tensor([6.6, 7.7, 11.5], dtype=dtype)


def test_equals_scikit_image_where_the_window_lies_inside():
    from skimage.metrics import structural_similarity

    x, y, data_range = images()
    ours = ssim_map(x, y, data_range)
    for b in range(len(x)):
        _, theirs = structural_similarity(
            x[b, 0].numpy(),
            y[b, 0].numpy(),
            data_range=float(data_range[b]),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        inside = slice(5, -5)
        np.testing.assert_allclose(ours[b, 0, inside, inside].numpy(), theirs[inside, inside], atol=1e-12)


def test_equals_torchmetrics():
    """At the border too, where it reflects the images as we do."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y, data_range = images()
    ours = ssim_map(x, y, data_range)
    for b in range(len(x)):
        mean, theirs = structural_similarity_index_measure(
            x[b : b + 1], y[b : b + 1], data_range=float(data_range[b]), return_full_image=True
        )
        torch.testing.assert_close(ours[b].mean(), mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours[b : b + 1], theirs, rtol=0, atol=1e-12)


def test_window_sums_to_one():
    weights = gaussian(torch.float64, torch.device("cpu"))
    assert len(weights) == 11
    assert float(weights.sum()) == pytest.approx(1, abs=1e-15)
    assert float(weights[4] / weights[5]) == pytest.approx(np.exp(-1 / (2 * 1.5**2)))


def test_equal_images_are_fully_similar():
    x, _, data_range = images()
    torch.testing.assert_close(ssim_map(x, x, data_range), torch.ones_like(x), rtol=0, atol=1e-12)


def test_a_pair_does_not_depend_on_its_batch_mates():
    x, y, data_range = images()
    together = ssim_map(x, y, data_range)
    alone = ssim_map(x[1:2], y[1:2], data_range[1:2])
    assert (together[1:2] - alone).abs().max() < 1e-14


def test_gradient_agrees_with_differences():
    x, y, data_range = images(size=12)
    x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: ssim_map(x, y, data_range), (x, y), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_whatever_the_autocast(dtype):
    x, y, data_range = images(dtype=dtype)
    expected = ssim_map(x.double(), y.double(), data_range.double())
    with torch.autocast("cpu", dtype):
        result = ssim_map(x, y, data_range)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() < 1e-4
    assert at_least_float32(x).dtype == torch.float32
    assert at_least_float32(x.double()).dtype == torch.float64


def test_large_and_constant_intensities_are_finite():
    """float16's largest values squared, and images without any variance."""
    for x, y in ((6e4, 6e4), (6e4, -6e4), (0.0, 0.0), (-1.0, 3.0)):
        left = torch.full((1, 1, 16, 16), x, dtype=torch.float16, requires_grad=True)
        right = torch.full((1, 1, 16, 16), y, dtype=torch.float16)
        value = ssim_map(left, right, torch.tensor([6.6]))
        value.sum().backward()
        assert torch.isfinite(value).all() and torch.isfinite(left.grad).all()
        assert value.abs().max() <= 1 + 1e-3


def test_region_mean():
    values = torch.arange(2 * 16, dtype=torch.float64).reshape(2, 1, 4, 4).requires_grad_()
    region = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    region[0, 0, 1, 2] = region[0, 0, 3, 3] = True
    means = region_mean(values, region)
    assert means.tolist() == [(6 + 15) / 2, 0]
    means.sum().backward()
    assert torch.equal(values.grad, region / 2)


def test_what_lies_outside_a_region_cannot_harm():
    values = torch.tensor([[[[1.0, float("nan")], [float("inf"), 3.0]]]], requires_grad=True)
    region = torch.tensor([[[[True, False], [False, True]]]])
    mean = region_mean(values, region)
    mean.backward()
    assert mean.item() == 2
    assert values.grad.flatten().tolist() == [0.5, 0, 0, 0.5]


def test_volumes_have_a_window_in_three_dimensions():
    from torchmetrics.functional.image import structural_similarity_index_measure

    x = torch.randn(2, 1, 14, 12, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x + 0.3 * x.flip(0)
    ours = ssim_map(x, y, torch.tensor([4.0, 5.0], dtype=torch.float64))
    for b, data_range in enumerate((4.0, 5.0)):
        _, theirs = structural_similarity_index_measure(
            x[b : b + 1], y[b : b + 1], data_range=data_range, return_full_image=True
        )
        inside = (..., slice(5, -5), slice(5, -5), slice(5, -5))
        torch.testing.assert_close(
            ours[b : b + 1][inside], theirs[inside].view(1, 1, 4, 2, 3), rtol=0, atol=1e-6
        )


def test_both_forms_of_the_blur_of_volumes_agree(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = gaussian_blur(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(gaussian_blur(x), products)
