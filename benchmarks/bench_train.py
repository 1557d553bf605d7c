"""The training step: slices a second, memory, and how far it is from what the device could do.

    python benchmarks/bench_train.py --out results/ [--width 64] [--batches 8] [--variants plain fast ...] [--repeats 3]

Each variant runs in a process of its own, on the real `GanStep` with both networks, fed with slices made on the spot. The
table's speed-ups are ratios to `plain` at the same batch size, measured in the same run. Writes train.json, train.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

VARIANTS: dict[str, tuple[str, list[str]]] = {
    "plain": (
        "per-pass encoding, eager, contiguous, fp32",
        ["training.fast_passes=false", "runtime.encoder_execution=separate"],
    ),
    "fast": ("each slice encoded once for both passes", ["runtime.encoder_execution=separate"]),
    "grouped": (
        "plain, the four encoders as one grouped network",
        ["training.fast_passes=false", "runtime.encoder_execution=grouped"],
    ),
    "channels-last": (
        "plain in channels-last layout",
        ["training.fast_passes=false", "runtime.encoder_execution=separate", "runtime.channels_last=true"],
    ),
    "compile": (
        "plain with torch.compile",
        ["training.fast_passes=false", "runtime.encoder_execution=separate", "runtime.compile=default"],
    ),
    "bf16": (
        "plain under bf16 autocast",
        ["training.fast_passes=false", "runtime.encoder_execution=separate", "runtime.precision=bf16"],
    ),
    "one-update": (
        "fast, all four targets in one update",
        ["runtime.encoder_execution=separate", "training.updates_per_batch=1"],
    ),
    "default": ("what the trainer chooses on this device (exact)", []),
    "together": (
        "bf16, compiled, channels-last, fast, one update a batch",
        [
            "runtime.precision=bf16",
            "runtime.compile=default",
            "runtime.channels_last=true",
            "training.updates_per_batch=1",
        ],
    ),
}
CPU_VARIANTS = ("plain", "fast", "grouped", "one-update", "default")
"""The others are known to cost time on CPUs and would take hours at full width; name them to run them."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--width", type=int, default=64, help="base channels of both networks")
    parser.add_argument("--image-size", type=int, default=240)
    parser.add_argument("--batches", type=int, nargs="+", default=[8], help="slices of a global batch")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument(
        "--count", action="store_true", help="also count operations and bytes (one more update)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run_all(options)
    (options.out / "train.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))
    plot(rows, options.out / "train.png")
    return 0


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One process for each variant and batch size; one that runs out of memory is reported as such."""
    import torch

    names = options.variants or (VARIANTS if torch.cuda.is_available() else CPU_VARIANTS)
    rows = []
    for batch in options.batches:
        for name in names:
            command = [sys.executable, __file__, "--worker", name, "--width", str(options.width)]
            command += ["--batches", str(batch), "--repeats", str(options.repeats)]
            command += ["--warmup", str(options.warmup), "--image-size", str(options.image_size)]
            command += ["--count"] if options.count else []
            print(f"{name}, batch of {batch} ...", file=sys.stderr, flush=True)
            done = subprocess.run(command, capture_output=True, text=True, env=environment())
            if done.returncode == 0:
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            else:
                reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
                rows.append({"variant": name, "batch": batch, "failed": reason[:200]})
    return rows


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one variant in this process."""
    import torch

    from benchmarks.counters import ceilings, count, seconds
    from brasyn_dist.config import load_config
    from brasyn_dist.data.normalise import Normaliser
    from brasyn_dist.data.plan import targets_and_masks
    from brasyn_dist.data.statistics import PUBLISHED
    from brasyn_dist.distributed import Distributed
    from brasyn_dist.training.observer import peak_memory_gib
    from brasyn_dist.training.setup import build_state
    from brasyn_dist.training.step import DeviceBatch, GanStep, Rates

    name, batch_size, size = options.worker, options.batches[0], options.image_size
    overrides = [
        f"generator.base_channels={options.width}", f"discriminator.base_channels={options.width}",
        f"generator.image_size={size}", f"discriminator.image_size={size}",
        f"training.global_batch_size={batch_size}", *VARIANTS[name][1],
    ]  # fmt: skip
    config = load_config(None, overrides)
    distributed = Distributed(config.runtime)
    state = build_state(config, distributed)
    normaliser = Normaliser(PUBLISHED, distributed.device)
    step = GanStep(config, distributed, state.generator, state.discriminator, normaliser)
    batch = DeviceBatch.load(slices(batch_size, size), normaliser)
    variants = 4 // config.training.updates_per_batch
    masks = [targets_and_masks(0, 0, u, batch_size, "three") for u in range(variants)]

    def update() -> None:
        step(batch, masks, Rates(1e-5, 1e-6))

    times = seconds(update, distributed.device, options.repeats, options.warmup)
    row: dict[str, Any] = {
        "variant": name,
        "batch": batch_size,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seconds_per_update": times,
        "seconds_per_batch": statistics.median(times) * config.training.updates_per_batch,
        "peak_memory_gib": peak_memory_gib(),
    }
    if options.count:
        operations, moved = count(update)
        dtype = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32
        peak_operations, peak_bytes = ceilings(distributed.device, dtype)
        best = max(operations / peak_operations, moved / peak_bytes)
        row |= {
            "operations": operations,
            "unfused_bytes": moved,
            "ceiling_operations_per_second": peak_operations,
            "ceiling_bytes_per_second": peak_bytes,
            "fraction_of_operations_ceiling": operations / peak_operations / statistics.median(times),
            "fraction_of_larger_bound": best / statistics.median(times),
        }
    return row


def slices(count: int, size: int) -> Any:
    """A batch of made-up slices: brain-sized discs of plausible integers with a tumour in each."""
    import numpy as np
    import torch

    from brasyn_dist.data.stream import SliceBatch

    random_numbers = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    brain = (x**2 / 0.09 + y**2 / 0.14) < 1
    planes = random_numbers.integers(100, 3000, (count, 4, size, size)).astype(np.int16) * brain
    tumour = ((x - 0.1) ** 2 + y**2 < 0.01).astype(np.uint8)
    return SliceBatch(
        index=0,
        planes=torch.from_numpy(planes.astype(np.int16)),
        labels=torch.from_numpy(np.broadcast_to(tumour, (count, size, size)).copy()),
        has_labels=torch.ones(count, dtype=torch.bool),
        view=torch.zeros(count, dtype=torch.int64),
        keys=[f"made-up/{i}" for i in range(count)],
        rows=slice(0, count),
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Text table; speed-up is per global batch (all four targets), against `plain` at the same batch size."""
    plain = {
        r["batch"]: r["seconds_per_batch"] for r in rows if r["variant"] == "plain" and "failed" not in r
    }
    lines = [
        f"{'variant':<14}{'batch':>6}{'s/batch':>10}{'slices/s':>10}{'speed-up':>10}{'GiB':>8}{'of ops ceiling':>16}"
    ]
    for r in rows:
        if "failed" in r:
            lines.append(f"{r['variant']:<14}{r['batch']:>6}  failed: {r['failed']}")
            continue
        ratio = plain[r["batch"]] / r["seconds_per_batch"] if r["batch"] in plain else float("nan")
        share = f"{r['fraction_of_operations_ceiling']:.0%}" if "operations" in r else "-"
        lines.append(
            f"{r['variant']:<14}{r['batch']:>6}{r['seconds_per_batch']:>10.3f}"
            f"{r['batch'] / r['seconds_per_batch']:>10.2f}{ratio:>10.2f}{r['peak_memory_gib']:>8.2f}{share:>16}"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [r for r in rows if "failed" not in r]
    figure, axis = pyplot.subplots(figsize=(8, 0.5 * len(done) + 1.2), layout="constrained")
    labels = [f"{r['variant']} (batch {r['batch']})" for r in done]
    axis.barh(labels[::-1], [r["batch"] / r["seconds_per_batch"] for r in done][::-1], color="#3b6ea5")
    axis.set_xlabel(f"slices a second, all four targets, both networks ({done[0]['device'] if done else ''})")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
