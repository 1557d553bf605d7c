"""Cost of a run without running it: `--dry-run`.

    configuration --> networks and step on fake tensors (shapes, no numbers) --> operations, peak memory
                  --> index of the shard set                                --> steps

Memory is counted: the storage of every tensor from its creation to the removal of its last reference, through
all phases of an update. What exists before the update is the fixed part, the rest is divided by the samples:
slices, or patches of tasks on volumes.
"""

import dataclasses
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from brasyn_dist.brats import BRATS
from brasyn_dist.config import Config, PatchRunConfig, RunConfig, SegmenterConfig, SegmenterRunConfig
from brasyn_dist.data.loading.loader import BatchMemory
from brasyn_dist.data.loading.patches import PatchMemory
from brasyn_dist.data.loading.sampler import targets_and_masks
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.single_process import LocalTrainable, SingleProcess
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.cycle_synthesis import CycleSynthesis
from brasyn_dist.models.discriminator import Discriminator
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.registry import build_generator
from brasyn_dist.models.segmenter import Guidance, Segmenter
from brasyn_dist.models.volume_network import build_volume_network
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.gan_step import GanStep
from brasyn_dist.training.gan_task import GanTask, check_updates, generator_options
from brasyn_dist.training.schedule import total_steps
from brasyn_dist.training.segmenter_task import SegmenterStep
from brasyn_dist.training.training_data import DeviceBatch, choose_training
from brasyn_dist.training.volume_data import DevicePatches, choose_cases
from brasyn_dist.training.volume_task import VolumeStep

log = logging.getLogger(__name__)
GIB = 2**30
CARDS = {24: 23.6, 48: 44.5, 80: 79.1, 141: 139.8}
"""GB in the name of a card -> GiB that programs can use (24,564, 46,068, 81,559 and 143,771 MiB, less 0.5
GiB)."""
RESERVE = 0.08
"""Fraction of a card for memory that is not counted: workspaces of convolutions and fragmentation."""


@dataclass(frozen=True)
class Cost:
    """Cost of one optimiser update of all networks in one process."""

    generator_parameters: int
    """Of the main network."""
    discriminator_parameters: int
    operations_per_slice: float
    """Floating-point operations of convolutions and matrix products; a multiply-add counts as two."""
    fixed_bytes: int
    """Weights, gradients, Adam's moments, average, gradient buckets, and the fixed part of an update."""
    bytes_per_slice: float
    """Addition of each slice of the micro-batch to the peak."""
    traffic_per_slice: float
    """Bytes that the operators read and write, without fusion and caches."""

    def peak_bytes(self, slices: int) -> float:
        """Largest memory of an update with micro-batches of `slices`."""
        return self.fixed_bytes + self.bytes_per_slice * slices

    def largest_batch(self, capacity_bytes: float) -> int:
        """Slices of the largest micro-batch that fits."""
        return max(0, int((capacity_bytes - self.fixed_bytes) / self.bytes_per_slice))


def measure(config: RunConfig, modality_set: ModalitySet = BRATS) -> Cost:
    """Count one update.

    A multiple of the number of modalities has the balanced targets of training.
    """
    slices = len(modality_set) * (1 if isinstance(config, PatchRunConfig) else 4)
    counted = count_update(config, slices, modality_set)
    generator, discriminator = counted.generator_parameters, counted.discriminator_parameters
    averaged = generator if config.training.ema_decay > 0 else 0
    # Buckets of DistributedDataParallel are the gradients themselves, or additional memory.
    buckets = 0 if config.runtime.gradient_as_bucket_view else generator + discriminator
    casts = 0 if config.runtime.precision == "no" else generator + discriminator
    return Cost(
        generator,
        discriminator,
        operations_per_slice=counted.operations / slices,
        # Adam's two moments and the average do not exist in the count. Autocast keeps copies of the weights.
        fixed_bytes=counted.fixed + 8 * (generator + discriminator) + 4 * (averaged + buckets) + 2 * casts,
        bytes_per_slice=(counted.peak - counted.fixed - 2 * casts) / slices,
        traffic_per_slice=counted.traffic / slices,
    )


@dataclass(frozen=True)
class Counted:
    """Counts of one update on fake tensors."""

    generator_parameters: int
    discriminator_parameters: int
    operations: int
    operators: int
    traffic: int
    """Bytes that the operators read and write."""
    fixed: int
    """Bytes of weights and gradients."""
    peak: int
    """Largest sum of bytes, with the fixed ones."""


Prepared = tuple[list[Trainable], Callable[[], Callable[[], object]]]
"""Networks, and a function that loads the samples and returns the update."""


def count_update(config: RunConfig, batch: int, modality_set: ModalitySet = BRATS) -> Counted:
    """Run one update of `batch` samples on fake tensors, eagerly."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    distributed = CountingProcess(config.runtime)
    training: Any = dataclasses.replace(config.training, global_batch_size=batch, micro_batch_size=None)
    config = dataclasses.replace(config, training=training)
    with FakeTensorMode(allow_non_fake_inputs=True), Counter() as counter:
        prepare: Any = PREPARE[config.task]
        networks, load = prepare(config, distributed, batch, modality_set)
        fixed = counter.now
        update = load()
        counter.operations = counter.operators = counter.traffic = 0
        update()
    counts = [sum(p.numel() for p in network.module.parameters()) for network in networks]
    return Counted(
        counts[0],
        sum(counts[1:]),
        counter.operations,
        counter.operators,
        counter.traffic,
        fixed,
        counter.peak,
    )


def prepare_slices(
    config: Config, distributed: ProcessGroup, batch: int, modality_set: ModalitySet
) -> Prepared:
    """An update of a GAN."""
    generator, discriminator = fake_networks(config, distributed, modality_set)
    guidance = guidance_of(config, modality_set)
    step = GanStep(
        config, distributed, generator, discriminator, Normaliser(PUBLISHED), guidance, modality_set
    )
    count = len(modality_set)
    masks = [
        targets_and_masks(0, 0, u, batch, config.order.availability, count) for u in range(step.variants)
    ]

    def load() -> Callable[[], object]:
        size = config.augmentation.crop or config.image_shape
        memory_of_slices = BatchMemory(size, "int16", count, context=config.context)
        slices = DeviceBatch.load(memory_of_slices.batch(0, slice(0, batch)), step.normaliser)
        return lambda: step(slices, masks, rate=0.0)

    return [n for n in (generator, discriminator) if n is not None], load


def prepare_volumes(
    config: PatchRunConfig, distributed: ProcessGroup, batch: int, modality_set: ModalitySet
) -> Prepared:
    """An update of a network of volumes."""
    network = build_volume_network(config.task, config.network, config.seed, modality_set)
    set_recompute(network, config.runtime.recompute)
    with_gradients(network)
    trainable = distributed.prepare(network, torch.optim.SGD(network.parameters()), network)
    step = VolumeStep(config, distributed, trainable, Normaliser(PUBLISHED), modality_set)
    masks = targets_and_masks(0, 0, 0, batch, config.order.availability, len(modality_set))

    def load() -> Callable[[], object]:
        memory = PatchMemory(config.patches.size, "int16", len(modality_set), network.needs_stage1)
        patches = DevicePatches.load(memory.batch(0, slice(0, batch)), step.normaliser)
        return lambda: step(patches, masks, rate=0.0)

    return [trainable], load


def prepare_segmenter(
    config: SegmenterRunConfig, distributed: ProcessGroup, batch: int, modality_set: ModalitySet
) -> Prepared:
    """An update of a segmenter."""
    segmenter = Segmenter(config.segmenter, modality_set)
    set_recompute(segmenter, config.runtime.recompute)
    with_gradients(segmenter)
    trainable = distributed.prepare(segmenter, torch.optim.SGD(segmenter.parameters()), segmenter)
    step = SegmenterStep(config, distributed, trainable, Normaliser(PUBLISHED))

    def load() -> Callable[[], object]:
        memory = BatchMemory(config.image_shape, "int16", len(modality_set))
        slices = DeviceBatch.load(memory.batch(0, slice(0, batch)), step.normaliser)
        return lambda: step(slices, rate=0.0)

    return [trainable], load


PREPARE = {
    "generator": prepare_slices,
    "segmenter": prepare_segmenter,
    "volume": prepare_volumes,
    "refiner": prepare_volumes,
}
"""Networks and update of each task."""


def with_gradients(network: nn.Module) -> None:
    """Give every parameter a gradient, as after a step."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)


def guidance_of(config: Config, modality_set: ModalitySet) -> Guidance | None:
    """Guidance by the segmenter of the objective; one of the default widths if it is not trained yet."""
    task = GanTask(config)
    path = task.missing()
    if path is None:
        return task.guidance
    log.warning("objective.segmenter=%s does not exist yet: counted with the default widths", path)
    shape = SegmenterConfig(image_size=config.generator.image_size)
    return task.guidance_of(Segmenter(shape, modality_set).requires_grad_(False))


def fake_networks(
    config: Config, distributed: ProcessGroup, modality_set: ModalitySet
) -> tuple[Trainable, Trainable | None]:
    """Networks as in gan_task.py, but neither moved nor compiled, and with gradients, as after a step."""
    options = generator_options(config, distributed.shards_weights)
    generator = build_generator(config.generator, config.seed, modality_set, **options)
    set_recompute(generator, config.runtime.recompute)
    passes = CycleSynthesis(generator, config.training.fast_passes, config.objective.uses_cycle)
    discriminator = None
    if config.objective.uses_discriminator:
        discriminator = Discriminator(config.discriminator, modality_set)
    for network in filter(None, (generator, discriminator)):
        with_gradients(network)
    # CountingTrainable does not step.
    unused = torch.optim.SGD(generator.parameters())
    return (
        distributed.prepare(passes, unused, generator),
        None if discriminator is None else distributed.prepare(discriminator, unused, discriminator),
    )


class CountingTrainable(LocalTrainable):
    """Without optimiser step: Adam reads the value of its step count, and fake tensors have no values.

    Gradients stay allocated, like those of DistributedDataParallel and of earlier micro-batches.
    """

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        """Clip the gradients; the norm before clipping."""
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm or float("inf"))


class CountingProcess(SingleProcess):
    """Networks of this group are `CountingTrainable`."""

    trainable = CountingTrainable


class Counter(TorchDispatchMode):
    """Counts what the operators in this context do."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        """Of convolutions and matrix products; a multiply-add counts as two."""
        self.operators = self.traffic = 0
        """Operators, and bytes that they read and write without fusion and caches; views are left out."""
        self.now = self.peak = 0
        """Bytes of all live storages that were created in this context, and their largest sum."""
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for leaf in results:
            self._note(leaf.untyped_storage())
        if formula := flop_registry.get(func.overloadpacket):
            self.operations += formula(*args, **kwargs, out_val=result)
        if not func.is_view:
            self.operators += bool(results)
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.traffic += sum(leaf.numel() * leaf.element_size() for leaf in (*read, *results))
        return result

    def _note(self, storage: Any) -> None:
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.now -= size


def cost_report(config: RunConfig) -> str:
    """Text for `--dry-run`. Reads the index of the shard set and trains nothing."""
    index = open_shard_set(config.data.shards, config.data.cache_dir, config.data.cache_gib)
    training: Any
    if isinstance(config, PatchRunConfig):
        training, what, unit, many = choose_cases(index, config.data), "training cases", "patch", "patches"
        chosen = "patches of " + " x ".join(map(str, config.patches.size)) + " voxels"
    else:
        if isinstance(config, Config):
            check_updates(config, index.header.modality_set)
        training, what, unit, many = choose_training(index, config.data), "training slices", "slice", "slices"
        chosen = ", ".join(config.data.views)
        if config.data.min_tumour_fraction:
            chosen += f", at least {config.data.min_tumour_fraction:.1%} tumour"
    cost = measure(config, modality_set=index.header.modality_set)
    batch, per_batch = config.training.global_batch_size, config.training.updates_per_batch
    steps = total_steps(config.training, len(training))
    operations = cost.operations_per_slice * batch * steps
    lines = {
        "run": str(config.run_dir),
        "data": f"{len(training)} {what} ({chosen}), {config.data.shards}",
        "steps": f"{steps} = {steps // per_batch} global batches of {batch} {many} x {per_batch} updates, "
        f"{steps / per_batch * batch / len(training):.2f} epochs",
        config.task: f"{cost.generator_parameters:,} parameters",
        "discriminator": f"{cost.discriminator_parameters:,} parameters"
        if cost.discriminator_parameters
        else "none",
        "operations": f"{cost.operations_per_slice / 1e9:.0f} GFLOP per {unit} and update, "
        f"{operations / 1e15:,.2f} PFLOP in all",
        "at 100 TFLOP/s": f"{operations / 1e14 / 3600:.2f} GPU hours, if bytes do not decide",
        "memory, fixed": f"{cost.fixed_bytes / GIB:.2f} GiB a process "
        "(weights, gradients, Adam, average, buckets)",
        f"memory, {many}": f"{cost.bytes_per_slice / GIB:.3f} GiB a {unit} of the micro-batch, "
        f"recompute {config.runtime.recompute}",
    }
    for card, gib in CARDS.items():
        fit = cost.largest_batch((1 - RESERVE) * gib * GIB)
        lines[f"fits {card} GB"] = f"{fit} {many} at a time on each GPU" + (
            "" if fit else "; choose runtime.recompute=activations or runtime.precision=bf16"
        )
    lines["checkpoint"] = (
        f"{4 * (4 * cost.generator_parameters + 3 * cost.discriminator_parameters) / GIB:.2f} GiB"
    )
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())
