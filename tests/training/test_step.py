"""One update: the fast path against the plain one in float64, recomputation, compilation, and no waiting for the device."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from brasyn_dist.data.loading.sampler import BatchMasks
from brasyn_dist.training.cycle_inputs import cycle_inputs
from brasyn_dist.training.training_data import DeviceBatch
from tests.models.test_cycle_synthesis import every_pattern, masks_of
from tests.training.small import Update, made_up_slices, small_config

PLAIN = ("training.fast_passes=false",)
VIEWS = ("generator.view_embedding=true",)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# ---- an update without discriminator terms


def test_without_its_terms_there_is_no_discriminator() -> None:
    update = Update(small_config("objective.adversarial=0", "objective.classification=0"))
    assert list(update.state.networks) == ["generator"] and update.state.discriminator is None
    with FlopCounterMode(display=False) as counter:
        terms = update()
    assert not [
        name for name in terms if "discriminator" in name or name in ("adversarial", "classification")
    ]
    assert "reconstruction" in terms and "generator_norm" in terms
    with FlopCounterMode(display=False) as with_it:
        Update(small_config())()
    assert counter.get_total_flops() < with_it.get_total_flops()


# ---- the fast path is the plain one


def assert_same_update(masks: list[BatchMasks], fast: tuple[str, ...], updates: int, *common: str) -> None:
    """Every term of the objective and every gradient of both networks, float64."""
    common = (
        *VIEWS,
        f"training.updates_per_batch={updates}",
        f"training.global_batch_size={len(masks[0])}",
        *common,
    )
    terms, gradients = Update(small_config(*common, *PLAIN), dtype=torch.float64).gradients(masks)
    fast_terms, fast_gradients = Update(small_config(*common, *fast), dtype=torch.float64).gradients(masks)
    assert terms.keys() == fast_terms.keys() and gradients.keys() == fast_gradients.keys()
    for name, wanted in (terms | gradients).items():
        difference = ((fast_terms | fast_gradients)[name] - wanted).abs().max()
        assert difference < 1e-10 * max(1.0, float(wanted.abs().max())), name
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients.values())


def shifted(masks: BatchMasks) -> list[BatchMasks]:
    """The four target variants of samples: each target in turn, with every other modality or some of them given."""
    variants = []
    for update in range(4):
        cases = []
        for row, first in enumerate(masks.target.tolist()):
            target = (first + update) % 4
            others = [m for m in range(4) if m != target]
            given = tuple(others[: 1 + (row + update) % 3])
            cases.append((target, given, given[-1]))
        variants.append(masks_of(cases))
    return variants


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["described", "published"])
def test_every_availability_pattern_has_the_plain_update(attention: str) -> None:
    """All 48 combinations of target, given modalities and cycle target in one batch, targets unbalanced by leaving four out."""
    cases = every_pattern()[:-4]
    assert_same_update([masks_of(cases)], (), 4, f"generator.attention={attention}")


@pytest.mark.parametrize("execution", ["separate", "grouped"])
@pytest.mark.parametrize("balanced", [True, False])
def test_one_update_for_all_targets_has_the_plain_gradient(balanced: bool, execution: str) -> None:
    cases = every_pattern()[::11] if balanced else [(2, (0, 1, 3), 0)] * 3
    masks = shifted(masks_of(cases))
    assert_same_update(masks, (f"runtime.encoder_execution={execution}",), 1)


def test_padded_rows_for_compilation_have_the_same_update() -> None:
    masks = [masks_of(every_pattern()[::7])]
    options = Update(small_config(*VIEWS, f"training.global_batch_size={len(masks[0])}"), dtype=torch.float64)
    padded = Update(options.config, dtype=torch.float64)
    padded.step._equal_rows = True
    _, expected = options.gradients(masks)
    _, gradients = padded.gradients(masks)
    for name, wanted in expected.items():
        assert (gradients[name] - wanted).abs().max() < 1e-10 * max(1.0, float(wanted.abs().max())), name


# ---- recomputation


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("execution", ["separate", "grouped"])
def test_recomputation_gives_the_same_gradients_and_repeats_no_convolution(
    execution: str, convolutions: int
) -> None:
    common = (
        *VIEWS, f"runtime.encoder_execution={execution}", f"generator.convolutions_per_block={convolutions}",
    )  # fmt: skip
    kept, operations, results = [], [], []
    for recompute in ("nothing", "activations"):
        update = Update(small_config(*common, f"runtime.recompute={recompute}"))
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        ):
            results.append(update.gradients())
        kept.append(sum(saved.values()))
        operations.append(counter.get_total_flops())
    (terms, gradients), (again_terms, again_gradients) = results
    assert all(torch.equal(again_terms[name], value) for name, value in terms.items())
    assert all(torch.equal(again_gradients[name], value) for name, value in gradients.items())
    assert operations[1] == operations[0]


# ---- nothing waits for the device


class NoWaiting(TorchDispatchMode):
    """Raises an error for operations that wait for the device, which tensors without values (`meta`) replace.

    Values and shapes that depend on them cannot be had from such tensors; blocking copies could be.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if name in ("_to_copy", "copy_") and len({x.device for x in tensors}) > 1:
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            assert non_blocking, f"{name} waits for the device"
        return result


@pytest.mark.parametrize("more", [(), ("training.updates_per_batch=1",), ("training.micro_batch_size=3",)])
def test_an_update_never_waits_for_the_device(more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a batch, both phases, clipping and steps, on a device from which nothing can be read."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    update = Update(small_config(*VIEWS, "order.availability=any", *more), "meta")
    with NoWaiting():
        update.batch = DeviceBatch.load(made_up_slices(), update.normaliser)
        sums = update()
    assert sums["generator_norm"].is_meta and sums["ssim_tumour"].is_meta


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x.bool()],
        lambda x: x.cpu(),
        lambda x: torch.ones(2).to(x.device),
        lambda x: torch.zeros(3).copy_(x),
    ],
    ids=["value", "condition", "mask", "download", "upload", "copy"],
)
def test_operations_that_wait_are_detected(wait: Callable[[torch.Tensor], Any]) -> None:
    """The check above can fail."""
    with NoWaiting(), pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
        wait(torch.ones(3, device="meta"))


# ---- compilation: one graph for each phase, and then never again


def compiled_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("training.updates_per_batch=1", "runtime.recompute=activations"),
        ("runtime.precision=bf16", "runtime.channels_last=true", "runtime.encoder_execution=grouped"),
    ],
    ids=["exact", "one update, recomputing", "bf16, channels-last, grouped"],
)
def test_each_phase_compiles_once_and_never_again(more: tuple[str, ...]) -> None:
    """Four graphs: both passes; the objective; the discriminator frozen, on B slices, and trained, on 2 B.

    No graph break: `fullgraph` makes one an error. All later batches run with recompilation an error.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    update = Update(small_config("runtime.compile=aot_eager", *more))
    update(0)
    assert compiled_graphs() == 4
    with torch._dynamo.config.patch(error_on_recompile=True):
        for k in range(1, 3):
            update(k)
    assert compiled_graphs() == 4
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_any_availability_compiles_once_for_each_of_a_few_shapes() -> None:
    """Padded rows: at most four counts, multiples of a quarter of the batch, hence at most four graphs of the passes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    update = Update(small_config("runtime.compile=aot_eager", "order.availability=any"))
    shapes = {cycle_inputs(update.masks(k), equal_rows=True).real_mix_BN.shape for k in range(50)}
    assert 1 < len(shapes) <= 4
    shapes = set()
    for k in range(8, 12):
        shapes.add(cycle_inputs(update.masks(k), equal_rows=True).real_mix_BN.shape)
        update(k)
    assert len(shapes) > 1
    assert compiled_graphs() == len(shapes) + 3
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_compiled_code_gives_the_eager_update() -> None:
    """Generated by Inductor, channels-last; the smallest network of this shape, for the compiler's time."""
    tiny = (
        "generator.image_size=24", "discriminator.image_size=24", "generator.channel_multipliers=[1,2]",
        "training.global_batch_size=4", "order.availability=three",
    )  # fmt: skip
    torch._dynamo.reset()
    terms, gradients = Update(small_config(*tiny), dtype=torch.float64).gradients()
    options = ("runtime.compile=default", "runtime.channels_last=true")
    compiled = Update(small_config(*tiny, *options), dtype=torch.float64)
    compiled_terms, compiled_gradients = compiled.gradients()
    # In float64: a tolerance wide enough for float32 once hid a gradient that was wrong by 3 % (models/cycle_synthesis.py, `pick`).
    for name, wanted in (terms | gradients).items():
        error = ((compiled_terms | compiled_gradients)[name] - wanted).norm() / wanted.norm().clamp(min=1e-3)
        assert error < 1e-9, (name, float(error))
