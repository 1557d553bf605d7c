"""The training step: slices a second, memory, and how far it is from what the device could do.

    python benchmarks/bench_train.py --out results/ [--batches 8] [--ladder [MOST]] [--readings 4 1] [--variants plain fast ...]

Each row is a process of its own: the real `GanStep` with both networks, fed with slices made on the spot. `plain` is the
same mathematics without any optimisation; the others add one each, or all. Readings: 4 updates a batch, or 1 for all four
targets (then a quarter of the slices at a time, so that as many synthetic ones are alive). Speed-ups are ratios to `plain` with
4 updates at the same batch size, in the same run: of wall seconds, and of CPU seconds where the machine is shared. `--ladder`
doubles the batch until memory is used up, or beyond MOST slices. `--segmenter RUN` adds the Tversky term to every row that can have it.
Shares of ceilings are of a large matrix product and a large copy, measured in the same process. On CPUs `GiB` is resident memory with
the interpreter, about 0.4, which `predicted` leaves out. Writes train.json, train.md, train.png.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEPARATE, GROUPED = "runtime.encoder_execution=separate", "runtime.encoder_execution=grouped"
PLAIN = [
    "training.fast_passes=false",
    SEPARATE,
    "runtime.compile=off",
    "runtime.channels_last=false",
    "runtime.tf32=false",
]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "plain": ("per-pass encoding, eager, contiguous, fp32", PLAIN),
    "fast": ("each slice encoded once for both passes", [*PLAIN, "training.fast_passes=true"]),
    "grouped": ("the four modality encoders as one grouped network", [*PLAIN, GROUPED]),
    "channels-last": ("channels-last layout", [*PLAIN, "runtime.channels_last=true"]),
    "compile": ("torch.compile", [*PLAIN, "runtime.compile=default"]),
    "tf32": ("TF32 in convolutions and matrix products (CUDA)", [*PLAIN, "runtime.tf32=true"]),
    "bf16": ("bf16 autocast", [*PLAIN, "runtime.precision=bf16"]),
    "recompute": ("activations computed again in the backward", [*PLAIN, "runtime.recompute=activations"]),
    "default": ("what the trainer chooses on this device", []),
    "fast-grouped": ("default, grouped", [GROUPED]),
    "bf16-eager": ("default in bf16, not compiled", ["runtime.precision=bf16", "runtime.compile=off"]),
    "together": (
        "bf16, compiled, channels-last, fast",
        ["runtime.precision=bf16", "runtime.compile=default", "runtime.channels_last=true"],
    ),
    "together-recompute": (
        "the same, activations computed again",
        [
            "runtime.precision=bf16", "runtime.compile=default", "runtime.channels_last=true",
            "runtime.recompute=activations",
        ],
    ),
}  # fmt: skip
CPU_VARIANTS = ("plain", "fast", "grouped", "recompute", "default")
"""The others are known to cost time on CPUs and would take hours at full width; name them to run them."""
TERMS = {"tversky": 5.0}
"""Terms of the objective that need a segmenter, with their weights."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--width", type=int, default=64, help="base channels of both networks")
    parser.add_argument("--image-size", type=int, nargs="+", default=[240], help="side, or rows and columns")
    parser.add_argument("--batches", type=int, nargs="+", default=[8], help="slices of a global batch")
    parser.add_argument(
        "--ladder",
        type=int,
        nargs="?",
        const=2**20,
        default=0,
        metavar="MOST",
        help="double the last batch size until memory is full (or so many slices)",
    )
    parser.add_argument(
        "--readings", type=int, nargs="+", choices=(4, 1), default=[4, 1], help="updates a batch"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of tensor operations on CPU")
    parser.add_argument(
        "--segmenter", help="run folder of a segmenter: measure with the Tversky term as well"
    )
    parser.add_argument(
        "--count", action="store_true", help="also count operations and bytes (two more updates)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    options = parser().parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run_all(options)
    (options.out / "train.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.out / "train.md").write_text(markdown(rows) + "\n")
    print(table(rows))
    plot(rows, options.out / "train.png")
    return 0


def run_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One process for each row; one that runs out of memory is reported as such, and ends its ladder."""
    import torch

    names = options.variants or (VARIANTS if torch.cuda.is_available() else CPU_VARIANTS)
    rows = []
    for name in names:
        for reading in options.readings:
            for segmenter in [None, *([options.segmenter] if has_tversky(options) else [])]:
                rows += climb(options, name, reading, segmenter)
    return sorted(rows, key=lambda r: (r["batch"], r["updates_per_batch"] != 4, r["tversky"]))


def has_tversky(options: argparse.Namespace) -> bool:
    """Whether a segmenter is given. Raises SystemExit if this version's objective has no such term."""
    from brasyn_dist.config import ObjectiveConfig

    known = {field.name for field in dataclasses.fields(ObjectiveConfig)}
    if options.segmenter and not known >= {*TERMS, "segmenter"}:
        raise SystemExit("--segmenter: the objective of this version has no term that needs one")
    return bool(options.segmenter)


def climb(
    options: argparse.Namespace, name: str, reading: int, segmenter: str | None
) -> list[dict[str, Any]]:
    """One variant at all batch sizes, as long as they fit."""
    rows: list[dict[str, Any]] = []
    batches = list(options.batches)
    while batches:
        batch = batches.pop(0)
        row = {"variant": name, "batch": batch, "updates_per_batch": reading, "tversky": bool(segmenter)}
        print(f"{name}, batch of {batch}, {reading} updates ...", file=sys.stderr, flush=True)
        rows.append(row | run_worker(options, row, segmenter))
        if "failed" in rows[-1]:
            break
        if 2 * batch <= options.ladder and not batches:
            batches.append(2 * batch)
    return rows


def run_worker(options: argparse.Namespace, row: dict[str, Any], segmenter: str | None) -> dict[str, Any]:
    overrides = [*VARIANTS[row["variant"]][1], f"training.updates_per_batch={row['updates_per_batch']}"]
    if segmenter is not None:
        overrides += [f"objective.{k}={v}" for k, v in TERMS.items()] + [f"objective.segmenter={segmenter}"]
    command = [sys.executable, __file__, "--worker", json.dumps(overrides), "--width", str(options.width)]
    command += ["--batches", str(row["batch"]), "--repeats", str(options.repeats)]
    command += ["--warmup", str(options.warmup), "--image-size", *map(str, options.image_size)]
    command += ["--threads", str(options.threads), *(["--count"] if options.count else [])]
    predicted, available = predict(options, overrides, row["batch"]), available_bytes()
    facts = {"predicted_gib": predicted / 2**30}
    # A CPU's memory is everybody's: the system would kill others before it refused us.
    if available is not None and predicted > 0.9 * available:
        return {
            **facts,
            "failed": f"not run: needs {predicted / 2**30:.1f} GiB, {available / 2**30:.1f} are free",
        }
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode == 0:
        return {**facts, **json.loads(done.stdout.splitlines()[-1])}
    reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
    return {**facts, "failed": "out of memory" if "OutOfMemory" in done.stderr else reason[:200]}


def predict(options: argparse.Namespace, overrides: list[str], batch: int) -> float:
    """Bytes, as `--dry-run` counts them (eagerly: compiled code keeps less)."""
    from brasyn_dist.training.cost_model import measure as measure_cost

    config = configure(options, [o for o in overrides if not o.startswith("objective.")], batch)
    return measure_cost(config).peak_bytes(config.training.micro_batch_size or batch)


def available_bytes() -> int | None:
    """Free memory of the machine, if updates run on its CPU."""
    import torch

    if torch.cuda.is_available():
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def configure(options: argparse.Namespace, overrides: list[str], batch: int) -> Any:
    from brasyn_dist.config import load_config

    # All four targets in one loss make four synthetic slices of each real one.
    size = options.image_size[0] if len(options.image_size) == 1 else options.image_size
    micro = max(1, batch // 4) if "training.updates_per_batch=1" in overrides else batch
    return load_config(
        None,
        [
            f"generator.base_channels={options.width}", f"discriminator.base_channels={options.width}",
            f"generator.image_size={size}", f"discriminator.image_size={size}",
            f"training.global_batch_size={batch}", f"training.micro_batch_size={micro}",
            f"runtime.threads={options.threads}", *overrides,
        ],
    )  # fmt: skip


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one row in this process."""
    import torch

    from benchmarks.counters import ceilings, count, synchronise
    from brasyn_dist.training.rank_timing import peak_memory_gib

    batch_size = options.batches[0]
    config = configure(options, json.loads(options.worker), batch_size)
    update, device = prepare_update(config)
    # On CPUs a single slice warms up; compiled code must see the shapes that are timed.
    for _ in range(options.warmup):
        update(batch_size if device.type == "cuda" else 1)
    wall, cpu = [], []
    for _ in range(options.repeats):
        synchronise(device)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        update(batch_size)
        synchronise(device)
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - begun_cpu)
    cuda = device.type == "cuda"
    row: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, threads: {torch.get_num_threads()}",
        "torch": torch.__version__,
        "seconds_per_update": wall,
        "cpu_seconds_per_update": cpu,
        "seconds_per_batch": statistics.median(wall) * config.training.updates_per_batch,
        "cpu_seconds_per_batch": statistics.median(cpu) * config.training.updates_per_batch,
        "peak_memory_gib": peak_memory_gib(),
    }
    if options.count:
        # Time is the processor's own: CPU seconds where updates run on it.
        own = statistics.median(wall if cuda else cpu)
        operations, moved = count(lambda: update(batch_size))
        dtype = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32
        peak_operations, peak_bytes = ceilings(device, dtype)
        row |= {
            "operations": operations,
            "unfused_bytes": moved,
            "ceiling_operations_per_second": peak_operations,
            "ceiling_bytes_per_second": peak_bytes,
            "fraction_of_operations_ceiling": operations / peak_operations / own,
            "fraction_of_larger_bound": max(operations / peak_operations, moved / peak_bytes) / own,
        }
    return row


def prepare_update(config: Any) -> tuple[Callable[[int], None], Any]:
    """A function that runs one update on the first so many slices of a batch, and the device it runs on."""
    from brasyn_dist.data.loading.sampler import targets_and_masks
    from brasyn_dist.distributed.process_group import Distributed
    from brasyn_dist.preprocessing.normalisation import Normaliser
    from brasyn_dist.preprocessing.statistics import PUBLISHED
    from brasyn_dist.training.gan_task import GanTask
    from brasyn_dist.training.training_data import DeviceBatch

    distributed, task = Distributed(config.runtime), GanTask(config)
    state = task.build_state(distributed)
    normaliser = Normaliser(PUBLISHED, distributed.device)
    step = task.build_step(distributed, state, normaliser)
    size = config.training.global_batch_size
    batch = DeviceBatch.load(slices(size, config.image_shape), normaliser)
    variants = 4 // config.training.updates_per_batch
    masks = [targets_and_masks(0, 0, u, size, "three") for u in range(variants)]

    def update(rows: int) -> None:
        step(batch.rows(0, rows), [m[:rows] for m in masks], 1e-5)

    return update, distributed.device


def slices(count: int, shape_HW: tuple[int, int]) -> Any:
    """A batch of made-up slices: brain-sized discs of plausible integers with a tumour in each."""
    import numpy as np
    import torch

    from brasyn_dist.data.loading.loader import BatchMemory

    random_numbers = np.random.default_rng(0)
    height, width = shape_HW
    x, y = (g / 240 for g in np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2)
    brain = (x**2 / 0.09 + y**2 / 0.14) < 1
    planes = random_numbers.integers(100, 3000, (count, 4, *shape_HW)).astype(np.int16) * brain
    tumour = ((x - 0.1) ** 2 + y**2 < 0.01).astype(np.uint8)
    batch = BatchMemory(shape_HW, "int16").batch(0, slice(0, count))
    batch.planes.copy_(torch.from_numpy(planes))
    batch.labels.copy_(torch.from_numpy(tumour))
    batch.has_labels.fill_(True)
    batch.view.fill_(0)
    batch.tumour_type.fill_(0)
    return batch


COLUMNS = (
    "variant",
    "updates",
    "batch",
    "s/batch",
    "slices/s",
    "speed-up",
    "in CPU s",
    "GiB",
    "predicted",
    "of ceilings",
)


def plain_rows(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """By batch size, what all others are compared with."""
    return {
        r["batch"]: r
        for r in rows
        if (r["variant"], r["updates_per_batch"], r["tversky"]) == ("plain", 4, False) and "failed" not in r
    }


def name_of(row: dict[str, Any]) -> str:
    return row["variant"] + (" + tversky" if row["tversky"] else "")


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Text of each row; speed-ups are per global batch (all four targets), against `plain` at the same batch size."""
    plain = plain_rows(rows)
    lines = []
    for r in rows:
        start = [name_of(r), str(r["updates_per_batch"]), str(r["batch"])]
        if "failed" in r:
            lines.append([*start, r["failed"], *[""] * 4, f"{r['predicted_gib']:.2f}", ""])
            continue
        reference = plain.get(r["batch"])
        ratios = [
            f"{reference[key] / r[key]:.2f}" if reference else "-"
            for key in ("seconds_per_batch", "cpu_seconds_per_batch")
        ]
        share = (
            f"{r['fraction_of_operations_ceiling']:.0%} ops, {r['fraction_of_larger_bound']:.0%} larger"
            if "operations" in r
            else "-"
        )
        lines.append(
            [
                *start, f"{r['seconds_per_batch']:.4g}", f"{r['batch'] / r['seconds_per_batch']:.3g}", *ratios,
                f"{r['peak_memory_gib']:.2f}", f"{r['predicted_gib']:.2f}", share,
            ]
        )  # fmt: skip
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    lines = [list(COLUMNS), *cells(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for docs/explanation/performance.md, with where it was measured."""
    where = next((f"{r['device']}, torch {r['torch']}" for r in rows if "failed" not in r), "nothing ran")
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *cells(rows)]
    return "\n".join(
        [f"{where}, {time.strftime('%Y-%m-%d')}", "", *("| " + " | ".join(line) + " |" for line in lines)]
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done, plain = [r for r in rows if "failed" not in r][::-1], plain_rows(rows)
    figure, axis = pyplot.subplots(figsize=(8, 0.3 * len(done) + 1.2), layout="constrained")
    updates = {4: ("4 updates", "#3b6ea5"), 1: ("1 update", "#d98c3f")}
    labels = [f"{name_of(r)}, {updates[r['updates_per_batch']][0]}, batch {r['batch']}" for r in done]
    colours = [updates[r["updates_per_batch"]][1] for r in done]
    bars = axis.barh(labels, [r["batch"] / r["seconds_per_batch"] for r in done], color=colours)
    ratios = [
        f"{plain[r['batch']]['seconds_per_batch'] / r['seconds_per_batch']:.2f} x"
        if r["batch"] in plain
        else ""
        for r in done
    ]
    axis.bar_label(bars, ratios, padding=3)
    axis.margins(x=0.1)
    axis.set_xlabel(
        f"slices a second, all four targets, both networks ({done[0]['device'] if done else 'nothing ran'})"
    )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
