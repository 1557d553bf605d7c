"""The dry run's counts against known sizes, counted operations against arithmetic, memory against what is really kept."""

import gc

import pytest
import torch

from brasyn_dist.config import load_config
from brasyn_dist.training.cost import measure

SMALL = (
    "generator.image_size=48", "discriminator.image_size=48", "generator.base_channels=8", "generator.heads=2",
    "generator.transformer_layers=1", "discriminator.base_channels=8",
)  # fmt: skip


@pytest.mark.slow
def test_full_width_has_the_published_size_and_cost():
    """Method, section 3: 80,039,041 parameters and 134 GFLOP a slice and pass; the backward costs twice the forward."""
    plain = measure(load_config(None, ["training.fast_passes=false"]))
    fast = measure(load_config(None))
    assert plain.generator_parameters == 80_039_041 and plain.discriminator_parameters == 4_485_952
    assert plain.operations_per_slice == pytest.approx(2 * 3 * 134e9, rel=0.03)
    # Four of eight modality encodings of 68.5 / 4 GFLOP each are saved, forward and backward.
    saved = plain.operations_per_slice - fast.operations_per_slice
    assert saved == pytest.approx(4 * 3 * 68.5e9 / 4, rel=0.02)


def test_kept_bytes_are_those_that_a_real_update_keeps():
    """The same hooks around a real forward and backward on the CPU keep as many bytes as counted without running it."""
    from brasyn_dist.data.plan import targets_and_masks
    from brasyn_dist.models.discriminator import build_discriminator
    from brasyn_dist.models.generator import build_generator
    from brasyn_dist.models.passes import SynthesisPasses, plan_passes

    config = load_config(None, SMALL)
    generator = build_generator(config.generator, 0)
    discriminator = build_discriminator(config.discriminator, 0)
    known = {p.data_ptr() for n in (generator, discriminator) for p in n.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    plan = plan_passes([targets_and_masks(0, 0, 0, 4, "three")])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        image, *_ = SynthesisPasses(generator)(torch.randn(4, 4, 48, 48), None, *plan)
        discriminator(image)
    gc.collect()
    assert measure(config).bytes_per_slice * 4 == pytest.approx(sum(kept.values()), rel=0.05)


def test_one_update_a_batch_costs_what_it_saves():
    four = measure(load_config(None, SMALL))
    one = measure(load_config(None, [*SMALL, "training.updates_per_batch=1"]))
    # All four targets in one loss encode 8 slices instead of 4 x 4.
    assert 2 * four.operations_per_slice < one.operations_per_slice < 4 * four.operations_per_slice
