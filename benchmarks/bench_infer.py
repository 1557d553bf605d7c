"""Synthesis of one missing modality of one case: seconds by stage. Prints one JSON line.

    python benchmarks/bench_infer.py [--config r3 | --weights EXPORT] [--case FOLDER] [--precision bf16] [--views axial sagittal]

The pipeline is that of `brasyn infer`, with untrained weights if none are given; without --case, on a synthetic case. `--every 5`
takes each fifth slice of a view, for networks that take minutes. The first of `--repeats` is left out if there are more: it
compiles kernels and allocates. `--compile` compiles the network as `torch.compile` does, `--channels-last` changes its layout.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.brats import MODALITIES, VIEW_AXES, VIEWS, find_case
from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import Config, load_config
from brasyn_dist.data.nifti import CaseVolumes, read_case, write_like
from brasyn_dist.inference.synthesis import (
    Member,
    StageTimer,
    SynthesisOptions,
    default_batch_size,
    stack_modalities,
    synthesise_case,
)
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.phantom import write_case
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED


def main() -> int:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = load(options, device)
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(generator, options, Path(folder)) for _ in range(options.repeats)]
    stages = min(runs[1:] or runs, key=lambda run: run["seconds"])
    result = {
        "config": options.config,
        "weights": options.weights and str(options.weights),
        "views": options.views,
        "every": options.every,
        "precision": options.precision,
        "compiled": options.compile,
        "channels_last": options.channels_last,
        "batch_size": options.batch_size or default_batch_size(device),
        "parameters": sum(p.numel() for p in generator.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "first_seconds": runs[0]["seconds"],
        **stages,
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if device.type == "cuda":
        result["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    print(json.dumps(result))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="r3", help="YAML file of a training, or name of a packaged one")
    parser.add_argument("--weights", type=Path, help="run or export folder; default: untrained weights")
    parser.add_argument("--case", type=Path, help="folder of one complete case; default: a synthetic one")
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155), help="of the synthetic case")
    parser.add_argument("--target", choices=MODALITIES, default="t2f", help="taken as missing")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=["axial"])
    parser.add_argument("--every", type=int, default=1, help="take each n-th slice of the (only) view")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, help="of tensor operations on CPU")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_args()


def load(options: argparse.Namespace, device: torch.device) -> Generator:
    if options.weights:
        generator = Generator.from_pretrained(options.weights)
    else:
        config = load_config(find_resource("configs", options.config), options.overrides, Config)
        generator = build_generator(config.generator, 0)
        generator.preprocessing = Preprocessing(PUBLISHED, tuple(options.views))
    generator.to(device).eval()
    if options.channels_last:
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        generator.compile(dynamic=False)
    return generator


def measure(generator: Generator, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Read, synthesise and write the case once."""
    if options.case is None:
        options.case = write_case(scratch, "BraTS-GLI-00000-000", seed=0, shape=tuple(options.shape))
    case = find_case(options.case)
    available = tuple(m for m in case.available if m != options.target)
    timer = StageTimer(next(generator.parameters()).device)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with timer("read"):
        volumes: CaseVolumes = read_case(case, available, False)
    images_MXYZ = stack_modalities(volumes.modalities, volumes.images)
    if options.every > 1:
        axes = [slice(None)] * 4
        axes[VIEW_AXES[options.views[0]] + 1] = slice(None, None, options.every)
        images_MXYZ = np.ascontiguousarray(images_MXYZ[tuple(axes)])
    made = synthesise_case(
        [Member(view, generator, Path(), "") for view in options.views], images_MXYZ, available, [options.target],
        SynthesisOptions(options.batch_size, options.precision), timer=timer,
    )  # fmt: skip
    with timer("write"):
        write_like(scratch / "made.nii.gz", volumes.images[0], volumes.reference)
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - begun_cpu,
        "stages": timer.seconds,
        "slices": int(sum(images_MXYZ.shape[1 + VIEW_AXES[view]] for view in options.views)),
        "mean": float(made[options.target].mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
