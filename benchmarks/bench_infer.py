"""Synthesis of one case: seconds by stage, and how they compare with running every slice through the plain forward pass.

    python benchmarks/bench_infer.py --case CASE_FOLDER --out results/ [--width 64 | --weights EXPORT] [--views axial sagittal]

`ours` is the pipeline that `brasyn infer` runs: slices without brain are left out, the encoder of the missing modality
does not run. `plain` runs every slice through `Generator.forward`, all four encoders. Both in one process, in turn, in batches
of one size; the voxels of both are compared, and the exit status is 1 if any differs. On slow machines `--every 5` takes each
fifth slice of a view: the share of slices without brain, and so the ratio, stays. On busy ones the ratio of CPU seconds is the
steadier one. Without --case, a synthetic one. Writes infer.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from brasyn_dist.brats import BRATS, MODALITIES, VIEW_AXES, VIEWS, find_case, image_shape
from brasyn_dist.common.provenance import environment
from brasyn_dist.config import GeneratorConfig
from brasyn_dist.data.nifti import CaseVolumes, read_case, write_like
from brasyn_dist.inference.synthesis import (
    STAGES,
    Member,
    StageTimer,
    autocast,
    brain_mask,
    default_batch_size,
    stack_modalities,
    synthesise_case,
)
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.normalisation import mask_missing
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.slicing import extract_slices, pad_or_crop, stack_slices
from brasyn_dist.preprocessing.statistics import PUBLISHED


def main() -> int:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = load(options, device)
    batch_size = options.batch_size or default_batch_size(device)
    with tempfile.TemporaryDirectory() as folder:
        volumes, read_seconds = read(options, Path(folder))
        rows = [
            measure(view, generator, volumes, batch_size, options, read_seconds, Path(folder))
            for view in options.views
        ]
    result = {
        "case": volumes.case.name,
        "target": options.target,
        "every": options.every,
        "batch_size": batch_size,
        "precision": options.precision,
        "base_channels": generator.config.base_channels,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "environment": environment(1, str(device)),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "infer.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 1 if any(row["voxels_differing"] for row in rows) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", type=Path, help="folder of one complete case")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--weights", type=Path, help="run or export folder; default: untrained weights")
    parser.add_argument("--width", type=int, default=64, help="base channels of untrained weights")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=["axial", "sagittal"])
    parser.add_argument("--target", choices=MODALITIES, default="t2f", help="taken as missing")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--every", type=int, default=1, help="take each n-th slice of a view")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest counts")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, help="of tensor operations on CPU")
    return parser.parse_args()


def load(options: argparse.Namespace, device: torch.device) -> Generator:
    if options.weights:
        generator = Generator.from_pretrained(options.weights)
    else:
        generator = build_generator(GeneratorConfig(base_channels=options.width), 0)
        generator.preprocessing = Preprocessing(PUBLISHED)
    return generator.to(device).eval()


def read(options: argparse.Namespace, scratch: Path) -> tuple[CaseVolumes, float]:
    """Volumes of the modalities that are not the target, and the seconds that reading took with a warm file cache."""
    if options.case is None:
        from brasyn_dist.phantom import write_case

        options.case = write_case(scratch, "BraTS-GLI-00000-000", seed=0)
    case = find_case(options.case)
    available = tuple(m for m in case.available if m != options.target)
    read_case(case, available, False)
    begun = time.perf_counter()
    return read_case(case, available, False), time.perf_counter() - begun


def measure(
    view: str,
    generator: Generator,
    volumes: CaseVolumes,
    batch_size: int,
    options: argparse.Namespace,
    read_seconds: float,
    scratch: Path,
) -> dict[str, Any]:
    """Both ways over one view, in turn; the fastest of the repeats of each."""
    planes = every_nth(stack_modalities(volumes.modalities, volumes.images), view, options.every)
    device, available = next(generator.parameters()).device, volumes.modalities

    def ours(timer: StageTimer) -> np.ndarray:
        member = Member(view, generator, Path(), "")
        return synthesise_case(
            [member], planes, available, [options.target],
            batch_size=batch_size, precision=options.precision, timer=timer,
        )[options.target]  # fmt: skip

    def plain(timer: StageTimer) -> np.ndarray:
        return run_every_slice(
            generator, planes, available, options.target, view, batch_size, options.precision, timer
        )

    runs = [(timed(ours, device), timed(plain, device)) for _ in range(options.repeats)]
    fast, slow = (min(way, key=lambda run: sum(run.seconds.values())) for way in zip(*runs))
    brain = brain_mask(torch.from_numpy(planes), BRATS.indices(available)).numpy()
    return {
        "view": view,
        "slices": len(extract_slices(brain, view)),
        "slices_with_brain": int(extract_slices(brain, view).any((1, 2)).sum()),
        "seconds": {"read": read_seconds, **fast.seconds, "write": write_seconds(volumes, scratch)},
        "plain_seconds": slow.seconds,
        "speed_up": sum(slow.seconds.values()) / sum(fast.seconds.values()),
        "cpu_speed_up": slow.cpu_seconds / fast.cpu_seconds,
        "voxels": int(fast.volume.size),
        "voxels_differing": int(np.count_nonzero(fast.volume != slow.volume)),
        "largest_difference": int(np.abs(fast.volume - slow.volume).max()),
    }


class Run(NamedTuple):
    """One way, once."""

    volume: np.ndarray
    seconds: dict[str, float]
    """By stage."""
    cpu_seconds: float
    """Of all threads."""


def timed(way: Callable[[StageTimer], np.ndarray], device: torch.device) -> Run:
    timer, begun = StageTimer(device), time.process_time()
    return Run(way(timer), timer.seconds, time.process_time() - begun)


def every_nth(images_MXYZ: np.ndarray, view: str, n: int) -> np.ndarray:
    """Each n-th slice of a view, as a thinner volume."""
    axes = [slice(None)] * 4
    axes[VIEW_AXES[view] + 1] = slice(None, None, n)
    return np.ascontiguousarray(images_MXYZ[tuple(axes)])


def write_seconds(volumes: CaseVolumes, scratch: Path) -> float:
    """Writing a whole volume, compressed: an input stands in for the output."""
    begun = time.perf_counter()
    write_like(scratch / "volume.nii.gz", volumes.images[0], volumes.reference)
    return time.perf_counter() - begun


@torch.inference_mode()
def run_every_slice(
    generator: Generator,
    images_MXYZ: np.ndarray,
    available: tuple[str, ...],
    target: str,
    view: str,
    batch_size: int,
    precision: Any,
    timer: StageTimer,
) -> np.ndarray:
    """The same volume the plain way: all slices, all four encoders, one host array of slices."""
    assert generator.preprocessing is not None
    device = next(generator.parameters()).device
    normaliser, wanted = generator.preprocessing.normaliser(device), MODALITIES.index(target)
    slices_KMHW = extract_slices(images_MXYZ, view)
    count, shape = len(slices_KMHW), slices_KMHW.shape[2:]
    available_BM = torch.tensor([[m in available for m in MODALITIES]] * batch_size, device=device)
    target_B = torch.full((batch_size,), wanted, device=device)
    view_B = torch.full((batch_size,), VIEWS.index(view), device=device)
    result_KHW = np.zeros((count, *shape), np.float32)
    for first in range(0, count, batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), count - 1)
        with timer("prepare"):
            padded = pad_or_crop(slices_KMHW[rows], image_shape(generator.config.image_size))
            x_BMHW = mask_missing(normaliser(torch.from_numpy(padded).to(device)), available_BM)
        with timer("network"), autocast(device, precision):
            image_B1HW, _ = generator(x_BMHW, available_BM, target_B, view_B)
        with timer("finish"):
            intensities = normaliser.denormalise(image_B1HW[:, 0].float(), wanted).cpu().numpy()
            result_KHW[rows] = pad_or_crop(intensities, shape)
    with timer("finish"):
        brain_XYZ = brain_mask(torch.from_numpy(images_MXYZ), BRATS.indices(available)).numpy()
        return np.rint(stack_slices(result_KHW, view) * brain_XYZ).astype(np.int32)


def table(result: dict[str, Any]) -> str:
    """Seconds by stage for each view, and the ratio to the plain way."""
    lines = [
        f"{result['case']}, {result['target']} missing, width {result['base_channels']}, {result['device']}, "
        f"{result['threads']} threads, batches of {result['batch_size']}"
        + (f", every {result['every']}th slice" if result["every"] > 1 else ""),
        f"{'view':<10}{'slices run':>12}"
        + "".join(f"{s:>9}" for s in STAGES)
        + f"{'plain':>9}{'speed-up':>10}{'in CPU s':>10}  voxels",
    ]
    for row in result["rows"]:
        stages = "".join(f"{row['seconds'][stage]:>9.2f}" for stage in STAGES)
        same = "equal" if not row["voxels_differing"] else f"{row['voxels_differing']} differ"
        lines.append(
            f"{row['view']:<10}{row['slices_with_brain']:>5} of {row['slices']:>3}{stages}"
            f"{sum(row['plain_seconds'].values()):>9.2f}{row['speed_up']:>10.2f}{row['cpu_speed_up']:>10.2f}  {same}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
