"""The gradient of a global batch does not depend on how it is cut into micro-batches: real networks, both phases."""

import pytest
import torch

from brasyn_dist.config import DiscriminatorConfig, GeneratorConfig, ObjectiveConfig, SegmenterConfig
from brasyn_dist.data.loading.sampler import targets_and_masks
from brasyn_dist.losses.objective import (
    GeneratorOutputs,
    discriminator_terms,
    generator_terms,
    weighted_discriminator_sum,
    weighted_sum,
)
from brasyn_dist.models.cycle_synthesis import CycleSynthesis, completed_slices
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.registry import build_generator
from brasyn_dist.models.segmenter import Guidance, build_segmenter
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE
from brasyn_dist.training.cycle_inputs import cycle_inputs

SIZE, GLOBAL_BATCH = 32, 8
GENERATOR = GeneratorConfig(
    image_size=SIZE, base_channels=8, transformer_layers=1, heads=4, segmentation_head=True
)
DISCRIMINATOR = DiscriminatorConfig(image_size=SIZE, base_channels=8)
RANGE_M = torch.tensor([6.6, 7.7, 11.5, 10.2], dtype=torch.float64)


def slices() -> tuple[torch.Tensor, torch.Tensor]:
    """Brains of different sizes, every other one with tumour of different sizes, the last slice all background."""
    noise = torch.Generator().manual_seed(0)
    real = torch.randn(GLOBAL_BATCH, 4, SIZE, SIZE, generator=noise, dtype=torch.float64).abs()
    tumour = torch.zeros(GLOBAL_BATCH, 1, SIZE, SIZE, dtype=torch.bool)
    for b in range(GLOBAL_BATCH):
        brain = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        brain[4 + b : 28, 6:26] = b < GLOBAL_BATCH - 1
        real[b] = torch.where(brain, real[b], BACKGROUND_VALUE)
        tumour[b, 0, 15 : 16 + b, 10:18] = b % 2 == 0
    return real, tumour


def gradients(
    size: int, updates_per_batch: int, config: ObjectiveConfig, fast: bool
) -> dict[str, torch.Tensor]:
    """Of both networks, accumulated over micro-batches of `size` and divided by the global batch."""
    generator = build_generator(GENERATOR, 0).double()
    discriminator = build_discriminator(DISCRIMINATOR, 0).double()
    segmenter = build_segmenter(SegmenterConfig(SIZE, (8, 16)), 0).double().requires_grad_(False)
    passes = CycleSynthesis(generator, fast)
    real, tumour = slices()
    variants = 1 if updates_per_batch == 4 else 4
    masks = [targets_and_masks(1, 2, u, GLOBAL_BATCH, "any") for u in range(variants)]
    for start in range(0, GLOBAL_BATCH, size):
        rows = slice(start, start + size)
        plan = cycle_inputs([m[rows] for m in masks])
        image, bottleneck, cycle_image, cycle_bottleneck, head = passes(real[rows], None, plan)
        truth = real[rows][plan.row_B, plan.target_B][:, None]
        discriminator.requires_grad_(False)
        patch, classes = discriminator(image)
        completed = completed_slices(real[rows][plan.row_B], image, plan.target_B)
        kind = torch.zeros_like(plan.target_B)
        guidance = Guidance(segmenter, config.tversky > 0, config.segmenter_features > 0)
        segmented, features, real_features = guidance(completed, real[rows][plan.row_B], kind, kind)
        outputs = GeneratorOutputs(
            image_B1HW=image,
            real_B1HW=truth,
            target_B=plan.target_B,
            bottleneck_BCHW=bottleneck,
            cycle_image_B1HW=cycle_image,
            cycle_real_B1HW=real[rows][plan.row_B, plan.cycle_target_B][:, None],
            cycle_bottleneck_BCHW=cycle_bottleneck,
            patch_B1hw=patch,
            class_BM=classes,
            tumour_B1HW=tumour[rows][plan.row_B],
            range_B=RANGE_M[plan.target_B],
            segmented_BCHW=segmented,
            segmenter_features=features,
            real_segmenter_features=real_features,
            head_BCHW=head,
            labels_BHW=2 * tumour[rows][plan.row_B][:, 0].long(),
            has_labels_B=(torch.arange(GLOBAL_BATCH) != 2)[rows][plan.row_B],
        )
        terms = generator_terms(config, outputs)
        (weighted_sum(config, terms).sum() / GLOBAL_BATCH).backward()
        discriminator.requires_grad_(True)
        judged = (*discriminator(truth), *discriminator(image.detach()), plan.target_B)
        (weighted_discriminator_sum(config, discriminator_terms(*judged)).sum() / GLOBAL_BATCH).backward()
    assert all(p.grad is None for p in segmenter.parameters())
    networks = {"generator": generator, "discriminator": discriminator}
    return {
        f"{n}.{k}": p.grad
        for n, network in networks.items()
        for k, p in network.named_parameters()
        if p.grad is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize(("updates_per_batch", "regions"), [(4, "dual"), (4, "whole"), (1, "dual")])
def test_gradient_of_a_global_batch_is_the_same_however_it_is_split(updates_per_batch, regions):
    config = ObjectiveConfig(
        ssim_regions=regions,
        mask_background=regions == "whole",
        tversky=5.0,
        segmenter="built here",
        segmenter_features=1.0,
        auxiliary_segmentation=0.5,
    )
    whole = gradients(GLOBAL_BATCH, updates_per_batch, config, fast=True)
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    for size in (4, 2):
        for name, gradient in gradients(size, updates_per_batch, config, fast=True).items():
            difference = (gradient - whole[name]).abs().max()
            assert difference < 1e-12 * max(1.0, float(whole[name].abs().max())), (size, name)


def test_plain_passes_have_the_same_gradient():
    whole = gradients(GLOBAL_BATCH, 4, ObjectiveConfig(), fast=True)
    plain = gradients(2, 4, ObjectiveConfig(), fast=False)
    assert all(
        (plain[name] - whole[name]).abs().max() < 1e-12 * max(1.0, float(whole[name].abs().max()))
        for name in whole
    )


@pytest.mark.parametrize("term", ["tversky", "segmenter_features"])
def test_the_generator_learns_from_the_segmenter_alone(term):
    """Every other weight is 0: what gradient there is has come through the frozen network."""
    off = dict.fromkeys(("reconstruction", "adversarial", "classification", "feature", "cycle", "ssim"), 0.0)
    config = ObjectiveConfig(**off, segmenter="built here", **{term: 5.0})
    gradient = gradients(GLOBAL_BATCH, 4, config, fast=True)
    learning = [g for name, g in gradient.items() if name.startswith("generator")]
    assert learning and all(g.isfinite().all() for g in learning)
    assert sum(float(g.abs().max()) > 0 for g in learning) > 0.9 * len(learning)
