"""What a run would cost, without running it: `--dry-run`.

    configuration --> the real networks on fake tensors (shapes, no numbers) --> parameters, operations, memory, steps

Memory is counted, not guessed: every tensor that autograd keeps for the backward of one slice's update, plus what does not
depend on the batch (weights, gradients, Adam, average).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brasyn_dist.config import Config
from brasyn_dist.data.index import ShardIndex
from brasyn_dist.data.plan import targets_and_masks
from brasyn_dist.models.discriminator import Discriminator
from brasyn_dist.models.generator import Generator
from brasyn_dist.models.passes import SynthesisPasses, plan_passes
from brasyn_dist.training.data import choose_training
from brasyn_dist.training.schedule import total_steps

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of one process with all slices of its micro-batch, for one optimiser update of the generator."""

    generator_parameters: int
    discriminator_parameters: int
    operations_per_slice: float
    """Floating-point operations (a multiply-add counts two) of forward and backward of both passes, and discriminator."""
    fixed_bytes: int
    """Weights, gradients, Adam's moments, moving average, gradient buckets of DistributedDataParallel."""
    bytes_per_slice: float
    """Activations that autograd keeps for the backward."""


def measure(config: Config, batch: int = 4) -> Cost:
    """Count with `batch` slices; a multiple of 4 has the balanced targets of training."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return _measure(config, batch)


def _measure(config: Config, batch: int) -> Cost:
    from torch.utils.flop_counter import FlopCounterMode

    generator = Generator(config.generator)
    discriminator = Discriminator(config.discriminator)
    cycle = config.objective.cycle > 0 or config.objective.feature > 0
    passes = SynthesisPasses(generator, fast=config.training.fast_passes, cycle=cycle)
    variants = 4 // config.training.updates_per_batch
    masks = [targets_and_masks(0, 0, u, batch, config.order.availability) for u in range(variants)]
    plan = plan_passes(masks)
    size = config.generator.image_size
    real = torch.empty(batch, 4, size, size)
    view = torch.zeros(batch, dtype=torch.int64)
    kept = SavedBytes({id(p) for network in (generator, discriminator) for p in network.parameters()})
    bf16 = config.runtime.precision != "no"
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        image, *others = passes(real, view, *plan)
        outputs = [image, *(x for x in others if x is not None), *discriminator(image)]
        sum(x.float().sum() for x in outputs).backward()
    counts = [sum(p.numel() for p in n.parameters()) for n in (generator, discriminator)]
    averaged = counts[0] if config.training.ema_decay > 0 else 0
    return Cost(
        generator_parameters=counts[0],
        discriminator_parameters=counts[1],
        operations_per_slice=counter.get_total_flops() / batch,
        # Weights, gradients, two moments and a bucket of each parameter.
        fixed_bytes=4 * (5 * sum(counts) + averaged),
        bytes_per_slice=kept.bytes / batch,
    )


class SavedBytes:
    """Adds up the storages that autograd saves, each once; parameters are there anyway."""

    def __init__(self, known: set[int]) -> None:
        self.bytes = 0
        self._known = known
        self._alive: list[Tensor] = []
        self._seen: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, nn.Parameter) and id(base) not in self._seen | self._known:
            self._seen.add(id(base))
            self._alive.append(base)  # keeps its id from being used again
            self.bytes += base.numel() * base.element_size()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


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
        "memory, slices": f"{cost.bytes_per_slice / GIB:.3f} GiB a slice of the micro-batch",
    }
    for capacity in (24, 48, 80):
        # A tenth for the allocator, workspaces and the CUDA context.
        fit = int((0.9 * capacity * GIB - cost.fixed_bytes) / cost.bytes_per_slice)
        lines[f"fits {capacity} GiB"] = f"{max(fit, 0)} slices in a micro-batch"
    lines["checkpoint"] = (
        f"{4 * (4 * cost.generator_parameters + 3 * cost.discriminator_parameters) / GIB:.2f} GiB"
    )
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())
