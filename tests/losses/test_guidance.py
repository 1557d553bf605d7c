"""Guidance by segmentation: feature matching on a frozen segmenter, and the generator's own segmentation head."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brasyn_dist.config import ObjectiveConfig, SegmenterConfig, TverskyConfig, load_config
from brasyn_dist.errors import ConfigError
from brasyn_dist.losses.objective import GeneratorOutputs, feature_matching, generator_terms, weighted_sum
from brasyn_dist.losses.tversky import focal_tversky
from brasyn_dist.models.segmenter import Guidance, build_segmenter

SIDE = 16
OFF = dict.fromkeys(("reconstruction", "adversarial", "classification", "feature", "cycle", "ssim"), 0.0)
FEATURES = ObjectiveConfig(**OFF, segmenter_features=2.0, segmenter="built here")
HEAD = ObjectiveConfig(**OFF, auxiliary_segmentation=0.5)


def features(seed: int) -> list[torch.Tensor]:
    """Two stages of features."""
    noise = torch.Generator().manual_seed(seed)
    shapes = ((3, 2, SIDE, SIDE), (3, 3, SIDE // 2, SIDE // 2))
    return [torch.randn(*shape, generator=noise, dtype=torch.float64) for shape in shapes]


def brain() -> torch.Tensor:
    """Two brains of different sizes, and a slice without one."""
    mask = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.bool)
    mask[0, 0, 3:8, 5:9] = mask[1, 0, 1:15, 2:13] = True
    return mask


def test_feature_matching_equals_a_loop_over_pixels():
    first, second, mask = features(0), features(1), brain()
    expected = []
    for b in range(2):
        stages = []
        for x, y in zip(first, second):
            step = SIDE // x.shape[2]
            pixels = {(i // step, j // step) for i, j in zip(*np.nonzero(mask[b, 0].numpy()))}
            stages.append(np.mean([(x[b, :, i, j] - y[b, :, i, j]).abs().mean() for i, j in pixels]))
        expected.append(np.mean(stages))
    assert feature_matching(first, second, mask).tolist() == pytest.approx([*expected, 0.0], abs=1e-12)


def test_gradient_of_feature_matching_equals_differences():
    first, second = features(0), features(1)
    first = [x.requires_grad_() for x in first]
    assert torch.autograd.gradcheck(lambda *x: feature_matching(x, second, brain()), tuple(first))


def test_a_sample_does_not_depend_on_its_batch():
    first, second, mask = features(0), features(1), brain()
    together = feature_matching(first, second, mask)
    for b in range(3):
        rows = slice(b, b + 1)
        alone = feature_matching([x[rows] for x in first], [x[rows] for x in second], mask[rows])
        assert torch.equal(together[rows], alone)


def outputs(image: torch.Tensor, real: torch.Tensor, **more) -> GeneratorOutputs:
    size = len(image)
    return GeneratorOutputs(
        image_B1HW=image, real_B1HW=real, target_B=torch.zeros(size, dtype=torch.int64),
        bottleneck_BCHW=torch.zeros(size, 1, 1, 1), range_B=torch.ones(size),
        tumour_B1HW=torch.zeros_like(real, dtype=torch.bool), **more,
    )  # fmt: skip


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_guidance_of_a_frozen_segmenter_reaches_the_image_and_is_finite(precision: torch.dtype):
    segmenter = build_segmenter(SegmenterConfig(SIDE, (8, 16)), 0).requires_grad_(False).eval()
    guidance = Guidance(segmenter, logits=False, features=True)
    noise = torch.Generator().manual_seed(5)
    real = torch.randn(3, 4, SIDE, SIDE, generator=noise).abs()
    real[2] = -1  # a slice of background
    image = torch.randn(3, 1, SIDE, SIDE, generator=noise).requires_grad_()
    kind = torch.zeros(3, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        logits, first, second = guidance(torch.cat([image, real[:, 1:]], 1), real, kind, kind)
    assert logits is None and not any(x.requires_grad for x in second) and first[0].dtype == precision
    found = outputs(image, real[:, :1], segmenter_features=first, real_segmenter_features=second)
    terms = generator_terms(FEATURES, found)
    assert list(terms) == ["segmenter_features"] and terms["segmenter_features"].dtype == torch.float32
    loss = weighted_sum(FEATURES, terms)
    torch.testing.assert_close(loss, 2 * terms["segmenter_features"])
    loss.sum().backward()
    assert image.grad.isfinite().all() and terms["segmenter_features"].isfinite().all()
    assert image.grad[:2].abs().amax((1, 2, 3)).min() > 0 and (image.grad[2] == 0).all()


def test_equal_slices_have_equal_features():
    segmenter = build_segmenter(SegmenterConfig(SIDE, (8, 16)), 0).eval()
    real = torch.randn(2, 4, SIDE, SIDE)
    kind = torch.zeros(2, dtype=torch.int64)
    logits, first, second = Guidance(segmenter, logits=True, features=True)(real, real, kind, kind)
    assert feature_matching(first, second, torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)).sum() == 0
    torch.testing.assert_close(logits, segmenter(real, kind, kind))


def test_missing_features_are_an_error():
    with pytest.raises(ValueError, match="features are needed"):
        generator_terms(FEATURES, outputs(torch.zeros(1, 1, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)))


def test_the_head_is_compared_with_the_labels_where_there_are_any():
    noise = torch.Generator().manual_seed(3)
    head = torch.randn(2, 4, SIDE, SIDE, generator=noise).requires_grad_()
    labels = torch.randint(0, 4, (2, SIDE, SIDE), generator=noise)
    slices = torch.zeros(2, 1, SIDE, SIDE)
    found = outputs(
        slices, slices, head_BCHW=head, labels_BHW=labels, has_labels_B=torch.tensor([True, False])
    )
    terms = generator_terms(HEAD, found)
    expected = focal_tversky(TverskyConfig(), head, labels)
    assert terms["auxiliary_segmentation"].tolist() == [expected[0].item(), 0.0]
    weighted_sum(HEAD, terms).sum().backward()
    assert head.grad[0].abs().max() > 0 and (head.grad[1] == 0).all()


@pytest.mark.parametrize("kind", ["hfgan", "unet"])
def test_the_head_is_trained_and_no_part_of_synthesis(kind: str):
    """A network with a head synthesises what the same network without it does."""
    from brasyn_dist.data.loading.sampler import targets_and_masks
    from brasyn_dist.models.cycle_synthesis import CycleSynthesis
    from brasyn_dist.models.registry import build_generator
    from brasyn_dist.training.cycle_inputs import cycle_inputs

    size = ["image_size=32", "base_channels=8", "heads=2", "transformer_layers=1"]
    size = (
        size if kind == "hfgan" else ["image_size=32", "widths=[16,16]", "full_channels=16", "condition=16"]
    )
    common = [f"generator.kind={kind}", *(f"generator.{s}" for s in size), "discriminator.image_size=32"]
    off = ["objective.cycle=0", "objective.feature=0"]
    config = load_config(
        None, [*common, *off, "generator.segmentation_head=true", "objective.auxiliary_segmentation=1"]
    )
    plain = build_generator(load_config(None, [*common, *off]).generator, 0)
    generator = build_generator(config.generator, 0)
    real = torch.randn(4, 4, 32, 32)
    view = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(generator.synthesise(real, (0, 1, 2), 3, 0), plain.synthesise(real, (0, 1, 2), 3, 0))
    *_, head = CycleSynthesis(generator, cycle=False)(
        real, view, cycle_inputs([targets_and_masks(0, 0, 0, 4)])
    )
    assert head.shape == (4, 4, 32, 32)
    F.cross_entropy(head, torch.zeros(4, 32, 32, dtype=torch.int64)).backward()
    encoder = generator.early_encoder if kind == "hfgan" else generator.encoder
    assert all(p.grad is not None for p in encoder.parameters()), "the head trains the encoder"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("objective.segmenter_features=1", "segmenter_features needs a segmenter"),
        ("objective.auxiliary_segmentation=1", "need each other"),
        ("generator.segmentation_head=true", "need each other"),
    ],
)
def test_options_that_do_not_go_together(option: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [option])
