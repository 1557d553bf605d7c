"""Sharding: subjects a minute and core, where the time goes, and how far it is from reading and encoding alone.

    python benchmarks/bench_shard.py --out results/ [--cases FOLDER ...] [--count 4] [--views axial] [--workers 1 2]

`least` is what no sharder can do without: every volume decompressed once, every kept slice encoded once. The ratio of the
whole (one worker) to that is in CPU seconds, which do not depend on what else the machine does. Without --cases, phantom
cases. Writes shard.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.brats import VIEWS, Case
from brasyn_dist.common.provenance import environment
from brasyn_dist.data.case_folders import find_cohorts, read_usable_case
from brasyn_dist.data.format.codec import encode_slice
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.data.sharding.options import ShardOptions
from brasyn_dist.data.sharding.read_cases import read_group
from brasyn_dist.data.sharding.write_shards import make_shards
from brasyn_dist.preprocessing.slicing import extract_slices, kept_slices


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cases", type=Path, nargs="+", help="cohort folders; default: phantom cases")
    parser.add_argument("--count", type=int, default=4, help="cases that are used")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=["axial"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, Path(scratch))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "shard.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 0


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    cohort = gather(options.cases, options.count, scratch)
    views = tuple(options.views)
    cases, _ = find_cohorts([cohort])
    for case in cases:  # warm files
        gunzip(case)
    stages, slices = stage_seconds(cases, views)
    runs = []
    for workers in sorted(set(options.workers)):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        make_shards(
            [cohort],
            scratch / f"shards-{workers}",
            ShardOptions(views=views, validation_fraction=0.0),
            workers=workers,
        )
        wall, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
        run = {"workers": workers, "seconds": wall, "subjects_per_minute": 60 * len(cases) / wall}
        # Of this process: with several workers it only waits for them.
        runs.append(run | ({"cpu_seconds": cpu} if workers == 1 else {}))
    result: dict[str, Any] = {
        "cases": len(cases), "slices": slices, "views": views, "stages_cpu_seconds": stages, "runs": runs,
        "environment": environment(1, "cpu"),
    }  # fmt: skip
    whole = next((run["cpu_seconds"] for run in runs if "cpu_seconds" in run), None)
    if whole is not None:
        least = stages["gunzip"] + stages["encode"]
        reading = least + stages["parse and check"]
        result |= {
            "ratio_to_reading_and_encoding": whole / reading,
            "cpu_seconds_per_subject": whole / len(cases),
            "subjects_per_cpu_minute": 60 * len(cases) / whole,
            "ratio_to_least": whole / least,
        }
    return result


def gather(cohorts: list[Path] | None, count: int, scratch: Path) -> Path:
    """A cohort folder with `count` cases: links to given ones, or phantoms."""
    folder = scratch / "train_gli"
    folder.mkdir()
    if cohorts is None:
        from brasyn_dist.phantom import write_case

        for number in range(count):
            write_case(folder, f"BraTS-GLI-{number:05d}-000", seed=number)
        return folder
    found, _ = find_cohorts(cohorts)
    for case in found[:count]:
        shutil.copytree(case.folder, folder / case.name)
    return folder


def stage_seconds(cases: list[Case], views: tuple[str, ...]) -> tuple[dict[str, float], int]:
    """CPU seconds of each piece of work, done once for every case; and how many slices are kept."""
    seconds = dict.fromkeys(("gunzip", "read", "statistics", "slice", "encode"), 0.0)
    slices = 0
    for case in cases:
        seconds["gunzip"] += timed(partial(gunzip, case))[0]
        spent, volumes = timed(partial(read_usable_case, case, views))
        seconds["read"] += spent
        both, _ = timed(partial(read_group, [case], {case.name}, ShardOptions(views=views), "int16", None))
        seconds["statistics"] += max(0.0, both - spent)
        spent, planes = timed(partial(cut, volumes, views))
        seconds["slice"] += spent
        seconds["encode"] += timed(partial(encode_all, planes))[0]
        slices += len(planes)
    seconds["read"] -= seconds["gunzip"]
    return {"gunzip": seconds.pop("gunzip"), "parse and check": seconds.pop("read"), **seconds}, slices


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def encode_all(planes: list[np.ndarray]) -> list[bytes]:
    return [encode_slice(p) for p in planes]


def gunzip(case: Case) -> None:
    for path in case.files.values():
        data = path.read_bytes()
        if path.suffix == ".gz":
            igzip.decompress(data)


def cut(volumes: CaseVolumes, views: tuple[str, ...]) -> list[np.ndarray]:
    """The kept slices of a case, contiguous, as they are encoded."""
    planes = [volumes.images] if volumes.labels is None else [volumes.images, volumes.labels[None]]
    planes_PXYZ = np.concatenate([p.astype(np.int16, copy=False) for p in planes])
    return [
        np.ascontiguousarray(extract_slices(planes_PXYZ, view)[index])
        for view in views
        for index in kept_slices(volumes.foreground, view, ShardOptions().minimum_foreground)
    ]


def table(result: dict[str, Any]) -> str:
    count = result["cases"]
    lines = [
        f"{count} cases, {result['slices']} slices ({', '.join(result['views'])}); CPU milliseconds a subject:"
    ]
    lines += [f"  {name:<18}{1000 * s / count:>8.0f}" for name, s in result["stages_cpu_seconds"].items()]
    for run in result["runs"]:
        lines.append(f"{run['workers']} workers: {run['subjects_per_minute']:.1f} subjects a minute (wall)")
    if "ratio_to_least" in result:
        lines.append(
            f"whole, one worker: {1000 * result['cpu_seconds_per_subject']:.0f} ms, {result['subjects_per_cpu_minute']:.1f} "
            f"subjects a CPU minute, {result['ratio_to_least']:.2f} x gunzip and encoding alone, "
            f"{result['ratio_to_reading_and_encoding']:.2f} x reading (gunzip, parse, check) once and encoding"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
