"""Phantom cases as arrays and as BraTS folders, and cohorts of them.

make_case --> arrays --write_case--> one case folder
plan_cohorts --> PlannedCase, ... --write_cohorts--> cohort folders
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from brasyn_dist.brats import VOLUME_SHAPE
from brasyn_dist.common.files import atomic_write_bytes
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.data.nifti import compress
from brasyn_dist.phantom.anatomy import make_anatomy
from brasyn_dist.phantom.lesions import Kind
from brasyn_dist.phantom.scanner import scan_all

__all__ = ["Kind", "brats_image", "make_case", "write_case"]


def make_case(
    seed: int, kind: Kind = "GLI", shape: Sequence[int] = VOLUME_SHAPE
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One case as arrays (x, y, z) in LPS order.

    Args:
        seed: Determines every voxel.
        kind: Glioma or metastases.
        shape: Shape of the volumes; the size of the head follows it.

    Returns:
        Volumes by modality, int16 with background 0, and labels, uint8 (1 NETC, 2 ED, 3 ET).
    """
    rng = np.random.default_rng(seed)
    x, y, z = shape
    anatomy = make_anatomy(rng, kind, (x, y, z))
    where = tuple(slice(o, o + n) for o, n in zip(anatomy.grid.origin, anatomy.grid.shape))

    def whole(part: np.ndarray) -> np.ndarray:
        full = np.zeros(shape, part.dtype)
        full[where] = part
        return full

    return {m: whole(v) for m, v in scan_all(rng, anatomy, kind).items()}, whole(anatomy.labels)


def write_case(
    root: Path | str,
    name: str,
    seed: int,
    kind: Kind = "GLI",
    shape: Sequence[int] = VOLUME_SHAPE,
    segmentation: bool = True,
) -> Path:
    """Write `root`/`name`/`name`-{t1c,t1n,t2f,t2w,seg}.nii.gz with the header conventions of BraTS.

    Returns:
        The folder of the case.
    """
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    volumes, labels = make_case(seed, kind, shape)
    for suffix, array in [*volumes.items(), *([("seg", labels)] if segmentation else [])]:
        atomic_write_bytes(folder / f"{name}-{suffix}.nii.gz", compress(brats_image(array).to_bytes()))
    return folder


def brats_image(array_xyz: np.ndarray) -> nibabel.Nifti1Image:
    """NIfTI image in the form of BraTS: LPS order, 1 mm, origin at the far end of y."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = array_xyz.shape[1] - 1
    image = nibabel.Nifti1Image(array_xyz, affine)
    image.header.set_xyzt_units("mm")
    image.header["regular"], image.header["pixdim"][4:] = b"r", 0
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


@dataclass(frozen=True)
class PlannedCase:
    """A case to write."""

    cohort: Path
    name: str
    seed: int
    kind: Kind


def plan_cohorts(out: Path, gliomas: int, metastases: int, seed: int) -> list[PlannedCase]:
    """Cases of `out`/train_gli and `out`/train_met."""
    kinds: list[tuple[Kind, int]] = [("GLI", n) for n in range(gliomas)]
    kinds += [("MET", n) for n in range(metastases)]
    return [
        PlannedCase(out / f"train_{kind.lower()}", f"BraTS-{kind}-{n:05d}-000", seed * 100_003 + number, kind)
        for number, (kind, n) in enumerate(kinds)
    ]


def write_cohorts(
    cases: Sequence[PlannedCase], shape: Sequence[int] = VOLUME_SHAPE, workers: int = 1
) -> None:
    """Write the cases that do not exist. Any number of workers writes the same files."""
    write = partial(write_planned, shape=tuple(shape))
    for _ in parallel_map("phantom cases", write, cases, workers):
        pass


def write_planned(case: PlannedCase, shape: Sequence[int]) -> None:
    """Write a case unless it exists. The segmentation is written last: a case that has one is complete."""
    if not (case.cohort / case.name / f"{case.name}-seg.nii.gz").exists():
        write_case(case.cohort, case.name, case.seed, case.kind, shape)
