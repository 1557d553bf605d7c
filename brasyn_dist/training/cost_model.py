"""What a run would cost, without running it: `--dry-run`.

    configuration --> real networks and the real GanStep on fake tensors (shapes, no numbers) --> operations, peak memory
                  --> index of the shard set                                                  --> steps

Memory is counted, not guessed: every tensor's storage, from the operator that makes it to the moment when nothing refers
to it any more, through both phases of an update. Counting batches of two sizes gives what is there anyway and what each
slice adds.
"""

import dataclasses
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brasyn_dist.config import Config
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.loading.loader import BatchMemory
from brasyn_dist.data.loading.sampler import targets_and_masks
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.single_process import LocalTrainable, SingleProcess
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.models.discriminator import Discriminator
from brasyn_dist.models.generator import Generator, default_execution
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.passes import SynthesisPasses
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.gan_step import DeviceBatch, GanStep, Rates
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.schedule import total_steps
from brasyn_dist.training.training_data import choose_training

GIB = 2**30
CARDS = {24: 23.6, 48: 44.5, 80: 79.1, 141: 139.8}
"""GiB that a card sold with so many GB lets programs use (NVIDIA's tools: 24,564, 46,068, 81,559, 143,771 MiB, less 0.5)."""
RESERVE = 0.08
"""Share of a card for what is not counted: workspaces of convolutions, and memory that the allocator cannot piece together."""


@dataclass(frozen=True)
class Cost:
    """Of one process, for one optimiser update of both networks."""

    generator_parameters: int
    discriminator_parameters: int
    operations_per_slice: float
    """Floating-point operations of convolutions and matrix products (a multiply-add counts two), both phases."""
    fixed_bytes: int
    """Weights, gradients, Adam's moments, moving average, gradient buckets, and what the update needs whatever the batch."""
    bytes_per_slice: float
    """What each slice of the micro-batch adds to the peak."""

    def peak_bytes(self, slices: int) -> float:
        """Largest memory of an update with so many slices at a time."""
        return self.fixed_bytes + self.bytes_per_slice * slices

    def largest_batch(self, capacity_bytes: float) -> int:
        """Slices of the largest micro-batch that fits."""
        return max(0, int((capacity_bytes - self.fixed_bytes) / self.bytes_per_slice))


def measure(config: Config, batch: int = 4) -> Cost:
    """Count with `batch` slices and twice as many; a multiple of 4 has the balanced targets of training."""
    small, large = (count_update(config, n) for n in (batch, 2 * batch))
    per_slice = (large.peak - small.peak) / batch
    generator, discriminator = small.generator_parameters, small.discriminator_parameters
    averaged = generator if config.training.ema_decay > 0 else 0
    # DistributedDataParallel's buckets are the gradients themselves, or come on top.
    buckets = 0 if config.runtime.gradient_as_bucket_view else 4 * (generator + discriminator)
    return Cost(
        generator,
        discriminator,
        operations_per_slice=small.operations / batch,
        # Adam's two moments and the average are not made here.
        fixed_bytes=int(small.peak - batch * per_slice)
        + 8 * (generator + discriminator)
        + 4 * averaged
        + buckets,
        bytes_per_slice=per_slice,
    )


@dataclass(frozen=True)
class Counted:
    """Of one update on fake tensors."""

    generator_parameters: int
    discriminator_parameters: int
    operations: int
    peak: int
    """Bytes."""


def count_update(config: Config, batch: int) -> Counted:
    """Run one update of `batch` slices on fake tensors, eagerly, as one process of many would."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    distributed = CountingProcess(config.runtime)
    training = dataclasses.replace(config.training, global_batch_size=batch, micro_batch_size=None)
    config = dataclasses.replace(config, training=training)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        generator, discriminator = fake_networks(config, distributed)
        segmenter = GanTask(config).segmenter
        step = GanStep(config, distributed, generator, discriminator, Normaliser(PUBLISHED), segmenter)
        variants = 4 // config.training.updates_per_batch
        masks = [targets_and_masks(0, 0, u, batch, config.order.availability) for u in range(variants)]
        memory_of_slices = BatchMemory(config.generator.image_size, "int16")
        slices = DeviceBatch.load(memory_of_slices.batch(0, slice(0, batch)), step.normaliser)
        with FlopCounterMode(display=False) as operations:
            step(slices, masks, Rates(0.0, 0.0))
    counts = [sum(p.numel() for p in network.module.parameters()) for network in (generator, discriminator)]
    return Counted(counts[0], counts[1], operations.get_total_flops(), memory.peak)


def fake_networks(config: Config, distributed: ProcessGroup) -> tuple[Trainable, Trainable]:
    """As training/build.py builds them, but never moved nor compiled; with gradients, as they are after a step."""
    execution = config.runtime.encoder_execution or default_execution(distributed.device)
    generator = Generator(config.generator, execution)
    set_recompute(generator, config.runtime.recompute)
    discriminator = Discriminator(config.discriminator)
    cycle = config.objective.cycle > 0 or config.objective.feature > 0
    passes = SynthesisPasses(generator, fast=config.training.fast_passes, cycle=cycle)
    for parameter in (*generator.parameters(), *discriminator.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    # CountingTrainable takes no step with it.
    unused = torch.optim.SGD(generator.parameters())
    return (
        distributed.prepare(passes, unused, generator),
        distributed.prepare(discriminator, unused, discriminator),
    )


class CountingTrainable(LocalTrainable):
    """Takes no optimiser step: Adam reads the value of its step count, and fake tensors have no values.

    Gradients stay allocated, like those of DistributedDataParallel and of earlier micro-batches.
    """

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm or float("inf"))


class CountingProcess(SingleProcess):
    """Networks of this group are `CountingTrainable`."""

    trainable = CountingTrainable


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made while it is active and not yet freed, and the largest such sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
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


def report(config: Config) -> str:
    """Text for `--dry-run`. Reads the shard set's index, trains nothing."""
    index = ShardIndex.load(config.data.shards, config.data.cache_dir, config.data.cache_gib)
    training = choose_training(index, config.data)
    cost = measure(config)
    batch, per_batch = config.training.global_batch_size, config.training.updates_per_batch
    steps = total_steps(config.training, len(training))
    operations = cost.operations_per_slice * batch * steps
    lines = {
        "run": str(config.run_dir),
        "data": f"{len(training)} training slices ({', '.join(config.data.views)}), {config.data.shards}",
        "steps": f"{steps} = {steps // per_batch} global batches of {batch} slices x {per_batch} updates, "
        f"{steps / per_batch * batch / len(training):.2f} epochs",
        "generator": f"{cost.generator_parameters:,} parameters",
        "discriminator": f"{cost.discriminator_parameters:,} parameters",
        "operations": f"{cost.operations_per_slice / 1e9:.0f} GFLOP a slice and update, {operations / 1e18:.3f} EFLOP in all",
        "at 100 TFLOP/s": f"{operations / 1e14 / 3600:.1f} GPU hours",
        "memory, fixed": f"{cost.fixed_bytes / GIB:.2f} GiB a process (weights, gradients, Adam, average, buckets)",
        "memory, slices": f"{cost.bytes_per_slice / GIB:.3f} GiB a slice of the micro-batch, "
        f"recompute {config.runtime.recompute}",
    }
    for card, gib in CARDS.items():
        fit = cost.largest_batch((1 - RESERVE) * gib * GIB)
        lines[f"fits {card} GB"] = f"{fit} slices at a time on each GPU" + (
            "" if fit else "; choose runtime.recompute=activations or runtime.precision=bf16"
        )
    lines["checkpoint"] = (
        f"{4 * (4 * cost.generator_parameters + 3 * cost.discriminator_parameters) / GIB:.2f} GiB"
    )
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())
