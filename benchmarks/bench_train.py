"""The training step: seconds of one update, memory, and the share of what the device can do. Prints one JSON line.

    python benchmarks/bench_train.py --config r3 --variant plain [--batch 16] [--profile FOLDER] [section.key=value ...]

Runs the real step of the trainer, with both networks if the objective has a discriminator, on slices that are made up. `plain`
is the same mathematics without any optimisation, which the loop of the published code also executes; the other variants add one
optimisation each, or all. Operations and bytes are counted on tensors without values (training/cost_model.py) and compared with
a large matrix product and a large copy in the same process. `--profile` writes the operators' times (profile.txt) and a trace
for Perfetto (profile.json.gz) after the measurement. `gpu_day.sh` runs all variants.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ceilings import ceilings, synchronise
from brasyn_dist.brats import image_shape
from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import Config, load_config
from brasyn_dist.data.loading.loader import BatchMemory, SliceBatch
from brasyn_dist.data.loading.sampler import targets_and_masks
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training import cost_model
from brasyn_dist.training.gan_task import GanTask
from brasyn_dist.training.rank_timing import peak_memory_gib
from brasyn_dist.training.training_data import DeviceBatch

GROUPED = "runtime.encoder_execution=grouped"
PLAIN = (
    "training.fast_passes=false", "runtime.compile=off", "runtime.channels_last=false", "runtime.tf32=false",
    "runtime.precision=no",
)  # fmt: skip
TOGETHER = ("runtime.precision=bf16", "runtime.compile=default", "runtime.channels_last=true")
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "tf32": (*PLAIN, "runtime.tf32=true"),
    "bf16": (*PLAIN, "runtime.precision=bf16"),
    "fast": (*PLAIN, "training.fast_passes=true"),
    "channels-last": (*PLAIN, "runtime.channels_last=true"),
    "compiled": (*PLAIN, "runtime.compile=default"),
    "grouped": (*PLAIN, GROUPED),
    "default": ("runtime.precision=no",),
    "together": TOGETHER,
    "together, eager": (*TOGETHER, "runtime.compile=off"),
    "together, grouped": (*TOGETHER, GROUPED),
    "together, recomputed": (*TOGETHER, "runtime.recompute=activations"),
}
"""`default`: what the trainer chooses on this device, in float32. `together`: bf16, compiled, channels-last, fast passes."""


def main() -> int:
    options = parse()
    config = configure(options)
    device, update = prepare_update(config)
    for _ in range(options.warmup):
        update()
    wall, cpu = [], []
    for _ in range(options.repeats):
        synchronise(device)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        update()
        synchronise(device)
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - begun_cpu)
    row = {
        "config": options.config,
        "variant": options.variant,
        "options": options.overrides,
        "batch": options.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
        "all_seconds": wall,
        "peak_memory_gib": peak_memory_gib(),
    }
    if options.profile:
        profile(update, device, options.profile)
    # A CPU may be shared: its own time counts.
    own_seconds = row["seconds"] if device.type == "cuda" else row["cpu_seconds"]
    print(json.dumps(row | shares(config, options.batch, device, own_seconds)))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="r3", help="YAML file, or name of a packaged one")
    parser.add_argument("--variant", choices=list(VARIANTS), default="default")
    parser.add_argument("--batch", type=int, default=16, help="slices of an update")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_args()


def configure(options: argparse.Namespace) -> Config:
    return load_config(
        find_resource("configs", options.config),
        [
            f"training.global_batch_size={options.batch}", "training.micro_batch_size=null",
            *VARIANTS[options.variant], *options.overrides,
        ],
        Config,
    )  # fmt: skip


def prepare_update(config: Config) -> tuple[torch.device, Callable[[], Any]]:
    """The device, and a function that runs one update."""
    distributed, task = Distributed(config.runtime), GanTask(config)
    state = task.build_state(distributed)
    normaliser = Normaliser(PUBLISHED, distributed.device)
    step = task.build_step(distributed, state, normaliser)
    size = config.training.global_batch_size
    batch = DeviceBatch.load(made_up_slices(config), normaliser)
    masks = [targets_and_masks(0, 0, u, size, config.order.availability) for u in range(step.variants)]
    return distributed.device, lambda: step(batch, masks, 1e-5)


def made_up_slices(config: Config) -> SliceBatch:
    """A global batch of brain-sized discs of random integers with a tumour in each."""
    count, shape_HW = (
        config.training.global_batch_size,
        image_shape(config.augmentation.crop or config.image_shape),
    )
    y, x = (torch.linspace(-0.5, 0.5, side) for side in shape_HW)
    brain_HW = (x[None, :] ** 2 / 0.09 + y[:, None] ** 2 / 0.14) < 1
    tumour_HW = ((x[None, :] - 0.1) ** 2 + y[:, None] ** 2) < 0.01
    batch = BatchMemory(shape_HW, "int16", context=config.context).batch(0, slice(0, count))
    noise = torch.Generator().manual_seed(0)
    for slices in (batch.planes, batch.context):
        slices.copy_(torch.randint(100, 3000, slices.shape, generator=noise, dtype=torch.int16) * brain_HW)
    batch.labels.copy_(tumour_HW.to(torch.uint8))
    for tensor, value in ((batch.has_labels, True), (batch.view, 0), (batch.tumour_type, 0)):
        tensor.fill_(value)
    return batch


def shares(config: Config, batch: int, device: torch.device, seconds: float) -> dict[str, float]:
    """Counted operations, bytes and memory of an update, and the shares of the device's ceilings in `seconds`."""
    cost = cost_model.measure(config)
    dtype = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32
    operations_per_second, bytes_per_second = ceilings(device, dtype)
    operations, traffic = cost.operations_per_slice * batch, cost.traffic_per_slice * batch
    by_operations = operations / operations_per_second / seconds
    by_bytes = traffic / bytes_per_second / seconds
    return {
        "predicted_gib": cost.peak_bytes(batch) / 2**30,
        "operations": operations,
        "unfused_bytes": traffic,
        "ceiling_operations_per_second": operations_per_second,
        "ceiling_bytes_per_second": bytes_per_second,
        "share_of_operations_ceiling": by_operations,
        "share_of_larger_ceiling": max(by_operations, by_bytes),
    }


def profile(update: Callable[[], Any], device: torch.device, folder: Path) -> None:
    """One update under torch.profiler."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    cuda = device.type == "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    with profiling(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        update()
        synchronise(device)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
    (folder / "profile.txt").write_text(text)
    profiler.export_chrome_trace(str(folder / "profile.json.gz"))


if __name__ == "__main__":
    sys.exit(main())
