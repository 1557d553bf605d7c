"""Reading patches of volumes: ours against MONAI's CacheDataset and PersistentDataset with RandCropByLabelClassesd.

    python benchmarks/bench_patches.py COHORT_DIR --out results/ [--cases 2] [--rounds 3] [--patches 96] [--sides 16 32 64]
        [--sizes 64,64,32 128,128,32]

All loaders yield patches of the same cases, half of them around a tumour voxel, as batches of four (M, X, Y, Z) int16 volumes
and uint8 labels. MONAI keeps whole volumes in memory (CacheDataset) or one file a case on disk (PersistentDataset), and
finds the voxels of each class once, before the measurement. By default CacheDataset copies the whole case for every patch;
`copy_cache=False` is its fastest form, and the reference. Every measurement is a process of its own on one thread, rounds
interleave the loaders, and files are warm. Writes patches.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_stream import cpu_seconds, environment, machine

BATCH = 4
SIZES = ["64,64,32", "128,128,32"]
REFERENCE = "MONAI CacheDataset, copy_cache=False"
CPU_SECONDS = 3
"""A measurement ends after this time, or the given number of patches."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohort", type=Path, help="cases with a segmentation")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=96, help="patches of a measurement")
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64], help="sides of chunks")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="sizes of patches")
    parser.add_argument("--work", type=Path, help="keep the files of the comparison here; default: removed")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(json.loads(options.worker), options.cohort, options.work)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        sizes = prepare(work, options.cohort, options.cases, options.sides)
        result = {"machine": machine(), "cases": options.cases, "bytes_per_case": sizes, "rounds": []}
        for row in run_all(work, options):
            result["rounds"].append(row)
            (options.out / "patches.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 0


def prepare(work: Path, cohort: Path, count: int, sides: list[int]) -> dict[str, float]:
    """Below `work`: links to the cases and a set for each side. Returns the stored bytes of a case."""
    from brasyn_dist.data.case_folders import find_cohorts
    from brasyn_dist.data.loading.storage import open_shard_set
    from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
    from brasyn_dist.modality_set import SEGMENTATION

    chosen = work / cohort.resolve().name
    if not chosen.exists():
        chosen.mkdir(parents=True)
        cases = [case for case in find_cohorts([cohort])[0] if SEGMENTATION in case.files]
        for case in cases[:count]:
            (chosen / case.name).symlink_to(case.folder.resolve())
    stored = {}
    for side in sides:
        out = work / f"chunks-{side}"
        make_shards([chosen], out, ShardOptions(views=(), chunks=side, validation_fraction=0.0))
        stored[str(side)] = float(open_shard_set(out).columns["size"].sum()) / count
    return stored


# ---- the loaders: each yields batches without end


def ours(cohort: Path, work: Path, size: tuple[int, ...], side: int) -> Iterator[tuple[Any, Any]]:
    from brasyn_dist.config import PatchConfig
    from brasyn_dist.data.format.chunks import select_chunks
    from brasyn_dist.data.loading.patches import PatchOrder, PatchStream
    from brasyn_dist.data.loading.storage import open_shard_set

    chunks = select_chunks(open_shard_set(work / f"chunks-{side}"), "train")
    order = PatchOrder(PatchConfig(size=size), 0, chunks, BATCH)  # type: ignore[arg-type]
    with PatchStream(chunks, order, slice(0, BATCH), 0, 10**6, threads=1, prefetch=1) as stream:
        for batch in stream:
            yield batch.volumes, batch.labels


def monai(cohort: Path, work: Path, size: tuple[int, ...], kind: str) -> Iterator[tuple[Any, Any]]:
    import torch
    from monai.data import CacheDataset, DataLoader, PersistentDataset, list_data_collate, set_track_meta
    from monai.transforms import (
        ClassesToIndicesd,
        Compose,
        ConcatItemsd,
        DeleteItemsd,
        LoadImaged,
        RandCropByLabelClassesd,
        SelectItemsd,
        Transform,
    )

    from brasyn_dist.data.case_folders import find_cohorts

    class Classes(Transform):
        """0 background, 1 brain, 2 tumour; types as stored. Datasets keep the results of a Transform only."""

        def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
            label = sample["seg"].to(torch.uint8)
            brain = (sample["image"] > 0).any(0, keepdim=True)
            return {**sample, "label": label, "classes": torch.where(label > 0, 2, brain.to(torch.uint8))}

    set_track_meta(False)  # tensors without metadata: faster
    cases = find_cohorts([cohort])[0]
    modalities = list(cases[0].modality_set.modalities)
    keys = [*modalities, "seg"]
    steps = Compose(
        [
            LoadImaged(keys, ensure_channel_first=True, dtype=np.int16),
            ConcatItemsd(modalities, "image"),
            Classes(),
            SelectItemsd(["image", "label", "classes"]),
            ClassesToIndicesd("classes", num_classes=3),
            DeleteItemsd("classes"),
            RandCropByLabelClassesd(
                ["image", "label"],
                label_key="label",
                indices_key="classes_cls_indices",
                spatial_size=size,
                ratios=[0, 1, 1],
                num_classes=3,
                num_samples=1,
            ),
        ]
    )
    files = [{key: str(case.files[key]) for key in keys} for case in cases]
    dataset: Any
    if kind == "persistent":
        dataset = PersistentDataset(files, steps, work / "persistent", hash_transform=lambda _: b"")
    else:
        dataset = CacheDataset(files, steps, progress=False, num_workers=1, copy_cache=kind == "copied")
    # A few cases are repeated, so that a batch has four.
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**6)
    loader = DataLoader(
        dataset, batch_size=BATCH, sampler=sampler, num_workers=0, collate_fn=list_data_collate
    )
    for batch in loader:
        yield batch["image"], batch["label"][:, 0]


# ---- measuring


def variants(sides: list[int], sizes: list[str]) -> list[dict[str, Any]]:
    ways = [(REFERENCE, "cache", 0), *((f"ours, chunks of {side}", "ours", side) for side in sides)]
    ways += [("MONAI CacheDataset", "copied", 0), ("MONAI PersistentDataset", "persistent", 0)]
    return [
        {"name": name, "loader": kind, "side": side, "size": [int(n) for n in size.split(",")]}
        for size in sizes
        for name, kind, side in ways
    ]


def run_all(work: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All variants in turn, `rounds` times: what else the machine does meets each alike."""
    cohort = work / options.cohort.resolve().name
    for turn in range(options.rounds):
        for variant in variants(options.sides, options.sizes):
            print(f"round {turn + 1}: {variant['name']} {variant['size']} ...", file=sys.stderr, flush=True)
            values = json.dumps({**variant, "patches": options.patches})
            command = [sys.executable, __file__, str(cohort), "--work", str(work), "--worker", values]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=True)
            yield {**variant, **json.loads(done.stdout.splitlines()[-1])}


def measure(variant: dict[str, Any], cohort: Path, work: Path) -> dict[str, Any]:
    """One loader in this process: the first patches warm imports and files, the others are timed."""
    import torch

    torch.set_num_threads(1)
    size, kind = tuple(variant["size"]), variant["loader"]
    batches = ours(cohort, work, size, variant["side"]) if kind == "ours" else monai(cohort, work, size, kind)
    begun = cpu_seconds()
    next(batches)
    first, brain, tumour, count = cpu_seconds() - begun, 0.0, 0, 0
    before, started = cpu_seconds(), time.perf_counter()
    looking = 0.0
    while count < variant["patches"] and cpu_seconds() - before - looking < CPU_SECONDS:
        volumes, labels = next(batches)
        looked = cpu_seconds()
        assert volumes.shape == (BATCH, 4, *size) and volumes.dtype == torch.int16, volumes.shape
        brain += float((volumes[:, 0] > 0).float().mean()) * BATCH
        middle = tuple(n // 2 for n in size)
        tumour += int((labels[:, middle[0], middle[1], middle[2]] > 0).sum())
        count += BATCH
        looking += cpu_seconds() - looked
    wall, cpu = time.perf_counter() - started, cpu_seconds() - before - looking
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "patches": count, "seconds": wall, "cpu_seconds": cpu, "first_cpu_seconds": first, "memory_bytes": memory,
        "brain": brain / count, "tumour_centres": tumour / count,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']}; {result['cases']} cases; MB of a case by side of the chunks: "
        + ", ".join(f"{side}: {size / 1e6:.1f}" for side, size in result["bytes_per_case"].items()),
        f"{'patches':16}{'loader':38}{'per CPU-s':>10}{'range':>12}{'ratio':>7}{'first, CPU-s':>14}{'GB':>6}{'brain':>7}{'tumour':>8}",
    ]
    rates: dict[tuple[str, str], list[float]] = {}
    for row in result["rounds"]:
        rates.setdefault((str(row["size"]), row["name"]), []).append(row["patches"] / row["cpu_seconds"])
    for (size, name), mine in rates.items():
        rows = [row for row in result["rounds"] if (str(row["size"]), row["name"]) == (size, name)]
        rate, reference = statistics.median(mine), statistics.median(rates[size, REFERENCE])
        first, memory, brain, tumour = (
            statistics.median(row[key] for row in rows)
            for key in ("first_cpu_seconds", "memory_bytes", "brain", "tumour_centres")
        )
        lines.append(
            f"{size:16}{name:38}{rate:10.0f}{f'{min(mine):.0f}-{max(mine):.0f}':>12}{rate / reference:7.2f}"
            f"{first:14.1f}{memory / 1e9:6.2f}{brain:7.0%}{tumour:8.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
