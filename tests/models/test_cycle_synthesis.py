"""Both passes with every slice encoded once, against the plain two forwards: same results, same gradients."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from brasyn_dist.data.loading.sampler import BatchMasks, targets_and_masks
from brasyn_dist.models.cycle_synthesis import CycleInputs, CycleSynthesis
from brasyn_dist.models.registry import build_generator
from brasyn_dist.training.cycle_inputs import cycle_inputs
from tests.models.conftest import small_config

SIDE = 32
CONFIG = small_config(image_size=SIDE, view_embedding=True, segmentation_head=True)


def masks_of(cases: list[tuple[int, tuple[int, ...], int]]) -> BatchMasks:
    """From (target, available modalities, cycle target) of each sample."""
    target = np.array([t for t, _, _ in cases])
    cycle_target = np.array([t for _, _, t in cases])
    available = np.array([[m in given for m in range(4)] for _, given, _ in cases])
    cycle_available = available.copy()
    cycle_available[np.arange(len(cases)), target] = True
    cycle_available[np.arange(len(cases)), cycle_target] = False
    return BatchMasks(target, available, cycle_target, cycle_available)


def every_pattern() -> list[tuple[int, tuple[int, ...], int]]:
    """All combinations of target, available modalities and cycle target: 4 x 12 = 48."""
    return [
        (target, given, cycle_target)
        for target in range(4)
        for count in (1, 2, 3)
        for given in itertools.combinations([m for m in range(4) if m != target], count)
        for cycle_target in given
    ]


def run(masks: list[BatchMasks], *, fast: bool, execution: str = "separate", **options) -> tuple[list, dict]:
    """Outputs, and gradients of a random linear function of all, on duplicated and different slices."""
    samples = len(masks[0].target)
    generator = build_generator(CONFIG, 0, encoder_execution=execution).double()
    noise = torch.Generator().manual_seed(1)
    real = torch.randn(samples, 4, SIDE, SIDE, generator=noise, dtype=torch.float64).requires_grad_()
    # The second sample repeats the first one's slices.
    slices = torch.cat([real[:1], real[:1], real[2:]]) if samples > 2 else real
    outputs = CycleSynthesis(generator, fast)(
        slices, torch.arange(samples) % 3, cycle_inputs(masks, **options)
    )
    loss = sum((o * torch.randn(o.shape, generator=noise, dtype=o.dtype)).sum() for o in outputs)
    loss.backward()
    gradients = {name: p.grad for name, p in generator.named_parameters()} | {"slices": real.grad}
    return list(outputs), gradients


def assert_equal(masks: list[BatchMasks], **options) -> None:
    expected, expected_gradients = run(masks, fast=False)
    outputs, gradients = run(masks, fast=True, **options)
    for output, wanted in zip(outputs, expected, strict=True):
        assert (output - wanted).abs().max() < 1e-10
    for name, wanted in expected_gradients.items():
        assert (gradients[name] - wanted).abs().max() < 1e-10 * max(1, float(wanted.abs().max())), name


@pytest.mark.parametrize("execution", ["separate", "grouped"])
@pytest.mark.parametrize("part", range(6))
def test_every_availability_pattern(part, execution):
    assert_equal([masks_of(every_pattern()[part::6])], execution=execution)


@pytest.mark.parametrize("equal_rows", [False, True])
@pytest.mark.parametrize(
    "cases",
    [
        [(2, (0, 1, 3), 0)],
        [(1, (3,), 3), (1, (3,), 3), (1, (0, 3), 0)],
        [(0, (1, 2, 3), 1)] * 5,
    ],
    ids=["one sample", "one target, one modality", "duplicates"],
)
def test_unbalanced_targets(cases, equal_rows):
    for execution in ("separate", "grouped"):
        assert_equal([masks_of(cases)], execution=execution, equal_rows=equal_rows)


@pytest.mark.parametrize("availability", ["three", "any"])
def test_all_four_targets_of_a_sample_in_one_loss(availability):
    masks = [targets_and_masks(3, 7, update, 5, availability) for update in range(4)]
    for equal_rows in (False, True):
        assert_equal(masks, equal_rows=equal_rows)


def test_outputs_are_those_of_two_forwards():
    """Spelt out once without CycleSynthesis: what is masked, and that the synthetic slice is an input of the cycle."""
    masks = masks_of([(2, (0, 3), 3), (0, (1, 2, 3), 2)])
    generator = build_generator(CONFIG, 0).double()
    real = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    view = torch.tensor([0, 2])
    with torch.no_grad():
        outputs = CycleSynthesis(generator)(real, view, cycle_inputs([masks]))
        x = torch.full_like(real, -1)
        x[0, [0, 3]], x[1, [1, 2, 3]] = real[0, [0, 3]], real[1, [1, 2, 3]]
        image, bottleneck = generator(x, torch.from_numpy(masks.available), torch.tensor([2, 0]), view)
        x = torch.full_like(real, -1)
        x[0, 0], x[0, 2] = real[0, 0], image[0, 0]
        x[1, [1, 3]], x[1, 0] = real[1, [1, 3]], image[1, 0]
        available = torch.tensor([[True, False, True, False], [True, True, False, True]])
        cycle_image, cycle_bottleneck = generator(x, available, torch.tensor([3, 2]), view)
        head = generator.segmentation_head(bottleneck)
    assert head.shape == (2, 4, SIDE, SIDE)
    every = (image, bottleneck, cycle_image, cycle_bottleneck, head)
    for output, expected in zip(outputs, every, strict=True):
        assert (output - expected).abs().max() < 1e-12


def encodings(plan: CycleInputs) -> tuple[int, int]:
    return sum(map(len, plan.real_rows)), sum(map(len, plan.synthetic_rows))


def test_number_of_encodings():
    """Half of the plain 8 a sample and update; a quarter of 32 a sample where all four targets share one loss."""
    size = 8
    one = cycle_inputs([targets_and_masks(0, 0, 0, size)])
    assert encodings(one) == (3 * size, size)
    assert [len(r) for r in one.synthetic_rows] == [size // 4] * 4
    four = cycle_inputs([targets_and_masks(0, 0, update, size) for update in range(4)])
    assert encodings(four) == (4 * size, 4 * size)


def test_missing_slices_are_not_encoded():
    """Nothing of a slice that is not available reaches the outputs: not even NaN."""
    masks = masks_of([(2, (0, 3), 3), (0, (2,), 2)])
    generator = build_generator(CONFIG, 0)
    real = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    plan = cycle_inputs([masks])
    with torch.no_grad():
        expected = CycleSynthesis(generator)(real, torch.zeros(2, dtype=torch.int64), plan)
        for sample, modality in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 3)):
            real[sample, modality] = float("nan")
        outputs = CycleSynthesis(generator)(real, torch.zeros(2, dtype=torch.int64), plan)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_plan_names_the_samples_of_all_variants():
    masks = [targets_and_masks(0, 0, update, 3, "any") for update in range(4)]
    plan = cycle_inputs(masks)
    assert plan.row_B.tolist() == [0, 1, 2] * 4
    assert plan.target_B.tolist() == [t for m in masks for t in m.target.tolist()]
    assert plan.cycle_target_B.tolist() == [t for m in masks for t in m.cycle_target.tolist()]
    assert torch.equal(plan.real_mix_BN.sum(1), plan.available_BM.sum(1).float())
    taken = plan.cycle_real_mix_BN.sum(1) + plan.cycle_synthetic_mix_BS.sum(1)
    assert torch.equal(taken, plan.cycle_available_BM.sum(1).float())
    moved = plan.to(torch.device("meta"))
    assert moved.real_rows[0].is_meta and moved.real_mix_BN.is_meta


def test_equal_rows_give_few_shapes():
    shapes = set()
    for k in range(50):
        plan = cycle_inputs([targets_and_masks(0, k, 0, 16, "any")], equal_rows=True)
        counts = {len(r) for r in plan.real_rows}
        assert len(counts) == 1 and counts.pop() % 4 == 0
        shapes.add(plan.cycle_real_mix_BN.shape)
    assert len(shapes) <= 3


@pytest.mark.parametrize("fast", [True, False])
def test_without_cycle_the_second_pass_is_left_out(fast):
    generator = build_generator(CONFIG, 0)
    real, view = torch.randn(4, 4, SIDE, SIDE), torch.zeros(4, dtype=torch.int64)
    plan = cycle_inputs([targets_and_masks(0, 0, 0, 4)])
    with torch.no_grad():
        both = CycleSynthesis(generator, fast)(real, view, plan)
        one = CycleSynthesis(generator, fast, cycle=False)(real, view, plan)
    assert torch.equal(one[0], both[0]) and torch.equal(one[1], both[1])
    assert one[2:4] == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("availability", ["three", "any"])
def test_compiles_as_one_graph_and_does_not_recompile(availability):
    """Balanced availability: one compilation for all batches. Any: one for each of the few padded shapes."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    passes = CycleSynthesis(build_generator(CONFIG, 0))
    passes.compile(dynamic=False, fullgraph=True, backend=counter)
    real: Tensor = torch.randn(8, 4, SIDE, SIDE)
    shapes = set()
    for k in range(5):
        plan = cycle_inputs([targets_and_masks(0, k, 0, 8, availability)], equal_rows=True)
        shapes.add((plan.real_mix_BN.shape, plan.cycle_synthetic_mix_BS.shape))
        passes(real, torch.zeros(8, dtype=torch.int64), plan)
    assert counter.frame_count == len(shapes) <= (1 if availability == "three" else 3)
