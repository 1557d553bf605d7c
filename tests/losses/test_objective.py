"""Every term against brute force in float64 numpy, gradients against differences, and finite where it is hard."""

import dataclasses

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from brasyn_dist.config import ObjectiveConfig, TverskyConfig
from brasyn_dist.losses.objective import (
    GeneratorOutputs,
    discriminator_terms,
    generator_terms,
    weighted_discriminator_sum,
    weighted_sum,
)
from tests.losses.test_tversky import by_hand

SIZE = 24
RANGES = (6.6, 7.7, 11.5, 10.2)
DUAL, WHOLE = ObjectiveConfig(), ObjectiveConfig(ssim_regions="whole")


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Four samples: with tumour, without, with six pixels of brain, and a constant slice of nothing but background."""
    noise = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    brain = torch.zeros(4, 1, SIZE, SIZE, dtype=torch.bool)
    brain[:2, :, 6:18, 7:17] = True
    brain[2, :, 3:5, 4:7] = True
    tumour = torch.zeros_like(brain)
    tumour[0, :, 4:10, 8:12] = True  # reaches two rows beyond the brain
    real = torch.where(brain, normal(4, 1, SIZE, SIZE).abs(), -1.0)
    cycle_real = torch.where(brain, normal(4, 1, SIZE, SIZE).abs(), -1.0)
    image = real + 0.3 * normal(4, 1, SIZE, SIZE)
    image[3] = 0.25
    target = torch.tensor([2, 0, 3, 1])
    values = {
        "image_B1HW": image,
        "real_B1HW": real,
        "bottleneck_BCHW": normal(4, 6, 2, 2),
        "cycle_image_B1HW": cycle_real + 0.4 * normal(4, 1, SIZE, SIZE),
        "cycle_real_B1HW": cycle_real,
        "cycle_bottleneck_BCHW": normal(4, 6, 2, 2),
        "patch_B1hw": 3 * normal(4, 1, 3, 3),
        "class_BM": 2 * normal(4, 4),
        "range_B": torch.tensor(RANGES, dtype=torch.float64)[target],
    }
    return {k: v.to(dtype) for k, v in values.items()} | {"target_B": target, "tumour_B1HW": tumour}


def terms_of(config: ObjectiveConfig, **values: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return generator_terms(config, GeneratorOutputs(**values))


def arrays() -> dict[str, np.ndarray]:
    return {name.rsplit("_", 1)[0]: value.numpy() for name, value in inputs().items()}


def expected_region_ssim(region: str) -> list[float]:
    a, values = arrays(), []
    for b in range(4):
        real, image = a["real"][b, 0], a["image"][b, 0]
        brain, tumour = real != -1, a["tumour"][b, 0]
        _, similarity = structural_similarity(
            np.where(brain, image, 0),
            np.where(brain, real, 0),
            data_range=a["range"][b],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        chosen = {"brain": brain, "healthy": brain & ~tumour, "tumour": brain & tumour}[region]
        # scikit-image and we differ in the outermost five pixels; the last sample, all zero, has no region there.
        values.append(float((1 - similarity)[chosen].mean()) if chosen.any() else 0.0)
    return values


def close(actual: torch.Tensor, expected, tolerance: float = 1e-12) -> None:
    assert actual.shape == (4,)
    np.testing.assert_allclose(actual.numpy(), np.asarray(expected), rtol=0, atol=tolerance)


def test_reconstruction_and_cycle():
    a, terms = arrays(), terms_of(DUAL, **inputs())
    close(terms["reconstruction"], [np.abs(a["image"][b] - a["real"][b]).mean() for b in range(4)])
    close(terms["cycle"], [np.abs(a["cycle_image"][b] - a["cycle_real"][b]).mean() for b in range(4)])


def test_smooth_l1():
    a, terms = arrays(), terms_of(dataclasses.replace(DUAL, smooth_l1=0.2), **inputs())
    error = np.abs(a["image"] - a["real"])
    expected = np.where(error < 0.2, error**2 / 0.4, error - 0.1)
    close(terms["reconstruction"], expected.mean((1, 2, 3)))
    close(terms["cycle"], [np.abs(a["cycle_image"][b] - a["cycle_real"][b]).mean() for b in range(4)])


def test_ssim_of_shifted_intensities():
    """The offset is added to the brain, not to the background; here by shifting the inputs by hand."""
    values = inputs()
    brain = values["real_B1HW"] != -1
    shifted = {name: torch.where(brain, values[name] + 1, -1) for name in ("image_B1HW", "real_B1HW")}
    for regions in (DUAL, WHOLE):
        offset = terms_of(regions, **values, ssim_offset=1.0)
        by_hand_ = terms_of(regions, **(values | shifted))
        for name in [n for n in offset if n.startswith("ssim")]:
            close(offset[name], by_hand_[name])


def test_errors_over_the_foreground_only():
    config = dataclasses.replace(DUAL, mask_background=True)
    a, terms = arrays(), terms_of(config, **inputs())
    for name, image, real in (("reconstruction", "image", "real"), ("cycle", "cycle_image", "cycle_real")):
        errors = [np.abs(a[image][b] - a[real][b])[a[real][b] != -1] for b in range(4)]
        close(terms[name], [e.mean() if e.size else 0 for e in errors])
        assert errors[3].size == 0


def test_adversarial_and_classification():
    a, terms = arrays(), terms_of(DUAL, **inputs())
    probability = 1 / (1 + np.exp(-a["patch"]))
    close(terms["adversarial"], -np.log(probability).mean((1, 2, 3)))
    softmax = np.exp(a["class"]) / np.exp(a["class"]).sum(1, keepdims=True)
    close(terms["classification"], -np.log(softmax[np.arange(4), a["target"]]))


def test_feature():
    a, terms = arrays(), terms_of(DUAL, **inputs())
    first, second = a["bottleneck"].reshape(4, -1), a["cycle_bottleneck"].reshape(4, -1)
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    close(terms["feature"], 1 - cosine)


def test_ssim_of_both_regions():
    terms = terms_of(DUAL, **inputs())
    close(terms["ssim_healthy"], expected_region_ssim("healthy"), 1e-10)
    close(terms["ssim_tumour"], expected_region_ssim("tumour"), 1e-10)
    assert terms["ssim_tumour"][1:].tolist() == [0, 0, 0]
    assert terms["ssim_healthy"][3] == 0
    assert terms["ssim_tumour"][0] > 0


def test_ssim_of_the_whole_brain():
    terms = terms_of(WHOLE, **inputs())
    close(terms["ssim_brain"], expected_region_ssim("brain"), 1e-10)
    assert "ssim_healthy" not in terms


def test_tversky_of_the_segmented_slices():
    """Against loops over pixels; one slice has no labels."""
    noise = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 4, 6, 6, generator=noise, dtype=torch.float64)
    labels = torch.randint(0, 4, (4, 6, 6), generator=noise)
    has_labels = torch.tensor([True, True, False, True])
    config = dataclasses.replace(DUAL, tversky=5.0, segmenter="somewhere")
    extra = {"segmented_BCHW": logits, "labels_BHW": labels, "has_labels_B": has_labels}
    terms = terms_of(config, **inputs(), **extra)
    expected = [by_hand(TverskyConfig(), logits[b], labels[b]) if has_labels[b] else 0.0 for b in range(4)]
    close(terms["tversky"], expected)
    without = {k: v for k, v in terms.items() if k != "tversky"}
    close(weighted_sum(config, terms) - weighted_sum(config, without), 5 * np.array(expected))
    with pytest.raises(ValueError, match="segmented_BCHW"):
        terms_of(config, **inputs())


def test_weighted_sum():
    config = ObjectiveConfig(
        reconstruction=2, adversarial=3, classification=5, feature=7, cycle=11, ssim=13, discriminator=17
    )
    terms = terms_of(config, **inputs())
    weights = {"reconstruction": 2, "adversarial": 3, "classification": 5, "feature": 7, "cycle": 11}
    weights |= {"ssim_healthy": 13, "ssim_tumour": 13}
    assert terms.keys() == weights.keys()
    close(weighted_sum(config, terms), sum(weights[k] * terms[k].numpy() for k in weights))


@pytest.mark.parametrize(
    "name", ["reconstruction", "adversarial", "classification", "feature", "cycle", "ssim"]
)
def test_a_term_of_weight_zero_is_not_computed(name):
    needs = {
        "adversarial": ["patch_B1hw"],
        "classification": ["class_BM"],
        "feature": ["cycle_bottleneck_BCHW"],
        "cycle": ["cycle_image_B1HW", "cycle_real_B1HW"],
    }
    every = terms_of(DUAL, **inputs())
    values = inputs() | dict.fromkeys(needs.get(name, []))
    terms = terms_of(dataclasses.replace(DUAL, **{name: 0.0}), **values)
    assert terms.keys() == {k for k in every if not k.startswith(name)}
    for need in needs.get(name, []):
        with pytest.raises(ValueError, match=need):
            terms_of(DUAL, **(inputs() | {need: None}))


def test_discriminator_terms():
    noise = torch.Generator().manual_seed(3)
    patches = torch.randn(2, 4, 1, 3, 3, generator=noise, dtype=torch.float64)
    classes = torch.randn(2, 4, 4, generator=noise, dtype=torch.float64)
    target = torch.tensor([3, 1, 0, 2])
    terms = discriminator_terms(patches[0], classes[0], patches[1], classes[1], target)
    probability = 1 / (1 + np.exp(-patches.numpy()))
    softmax = np.exp(classes.numpy()) / np.exp(classes.numpy()).sum(2, keepdims=True)
    expected = {
        "discriminator_real": -np.log(probability[0]).mean((1, 2, 3)),
        "discriminator_synthetic": -np.log(1 - probability[1]).mean((1, 2, 3)),
        "discriminator_real_class": -np.log(softmax[0][np.arange(4), target]),
        "discriminator_synthetic_class": -np.log(softmax[1][np.arange(4), target]),
    }
    assert terms.keys() == expected.keys()
    for name in expected:
        close(terms[name], expected[name])
    close(weighted_discriminator_sum(ObjectiveConfig(discriminator=0.5), terms), 0.5 * sum(expected.values()))


@pytest.mark.parametrize(
    "config", [DUAL, WHOLE, ObjectiveConfig(mask_background=True)], ids=["dual", "whole", "masked"]
)
def test_gradients_agree_with_differences(config):
    values = inputs()
    names = [
        k for k in values if k.startswith(("image", "cycle_image", "bottleneck", "cycle_b", "patch", "class"))
    ]

    def objective(*variables: torch.Tensor) -> torch.Tensor:
        return weighted_sum(config, terms_of(config, **(values | dict(zip(names, variables)))))

    variables = tuple(values[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(objective, variables, fast_mode=True)


@pytest.mark.parametrize(
    "config", [DUAL, WHOLE, ObjectiveConfig(mask_background=True)], ids=["dual", "whole", "masked"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_finite_in_every_precision(config, dtype):
    """Network outputs in low precision, slices in float32, as in training: forward and backward, hard slices included."""
    values = inputs(torch.float32)
    names = [
        "image_B1HW",
        "cycle_image_B1HW",
        "bottleneck_BCHW",
        "cycle_bottleneck_BCHW",
        "patch_B1hw",
        "class_BM",
    ]
    outputs = {name: values[name].to(dtype) for name in names}
    outputs["bottleneck_BCHW"][3] = 0
    outputs["cycle_bottleneck_BCHW"][2:] = 0
    outputs["patch_B1hw"][0] = -300
    for value in outputs.values():
        value.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype):
        terms = terms_of(config, **(values | outputs))
        loss = weighted_sum(config, terms)
    loss.sum().backward()
    exact = terms_of(
        config, **{k: v.double() if v.is_floating_point() else v for k, v in (values | outputs).items()}
    )
    for name, value in terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.detach().double(), exact[name].detach(), rtol=1e-3, atol=1e-4)
    assert all(torch.isfinite(value.grad).all() for value in outputs.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_discriminator_terms_are_finite_in_every_precision(dtype):
    patch = torch.tensor([-300.0, 300.0], dtype=dtype).repeat(2).view(4, 1, 1, 1).requires_grad_()
    classes = torch.tensor([[-300.0, 300.0, 0.0, 1.0]] * 4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype):
        terms = discriminator_terms(patch, classes, patch, classes, torch.tensor([0, 1, 2, 3]))
        loss = weighted_discriminator_sum(DUAL, terms)
    loss.sum().backward()
    assert all(torch.isfinite(v).all() and v.dtype == torch.float32 for v in terms.values())
    assert torch.isfinite(patch.grad).all() and torch.isfinite(classes.grad).all()


def test_labels_outside_the_brain_do_not_count():
    values = inputs()
    moved = values["tumour_B1HW"].clone()
    moved[0, 0, :6] = True  # rows above the brain
    terms, other = terms_of(DUAL, **values), terms_of(DUAL, **(values | {"tumour_B1HW": moved}))
    assert torch.equal(terms["ssim_tumour"], other["ssim_tumour"])
