"""Measurements of one case for quality control: a pure function of its files.

case --read leniently--> volumes --measure--> CaseFacts (picklable) --> anomalies.py, for a cohort
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np

from brasyn_dist.brats import BRATS, CAVITY, VIEWS, Case
from brasyn_dist.data.case_notes import case_notes
from brasyn_dist.data.nifti import CaseVolumes, read_case
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.slicing import MINIMUM_FOREGROUND, kept_slices

LOG_EDGES = np.geomspace(1, 32768, 121)
"""Bins of the stored intensities."""
UNIT_EDGES = np.linspace(0, 1.25, 101)
"""Bins of intensities relative to the 99.5th percentile of the volume."""
_ENDS = ("x low", "x high", "y low", "y high", "z low", "z high")
_TILE = 2
"""Step between the voxels that are pixels of a thumbnail."""
CAVITY_NAME = "resection cavity"
_COARSE = 8
"""Side of the blocks whose means are compared between cases, in voxels."""


@dataclass(frozen=True, eq=False)
class ModalityFacts:
    """Measurements of one volume.

    Foreground: values above 0. Brain: foreground of at least half of the modalities.
    """

    dtype: str
    """Of the file."""
    minimum: int
    maximum: int
    voxels: int
    """Of the foreground."""
    negative: int
    """Voxels below 0."""
    median: float
    p995: float
    mean: float
    std: float
    distinct: int
    """Different values in the foreground."""
    saturated: float
    """Fraction of the foreground that has exactly the maximum."""
    extra: int
    """Foreground voxels that are not brain."""
    missing: int
    """Brain voxels that are not foreground."""
    ends: dict[str, float]
    """For each side: area of the outermost plane with foreground, relative to the largest plane of its
    axis."""
    absent: dict[str, int]
    """By axis: planes of the brain (of at least 1 % of its largest plane) in which this volume has no
    foreground."""
    border: int
    """Foreground voxels on the border of the volume."""
    roughness: float
    """Mean absolute Laplacian in the brain, relative to the standard deviation. High: noisy; low: blurred."""
    anisotropy: float
    """Largest by smallest mean absolute difference of neighbours along the three axes. High: thick slices."""
    repeated: int
    """Axial planes with foreground that equal the plane before."""
    sha256: str
    log_counts: np.ndarray
    """Foreground voxels in each bin of LOG_EDGES."""
    unit_counts: np.ndarray
    """In each bin of UNIT_EDGES."""
    values: np.ndarray
    """Different values of the foreground, ascending."""
    value_counts: np.ndarray
    """Foreground voxels of each of `values`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON content: everything but the histograms."""
        return {k: v for k, v in self.__dict__.items() if not isinstance(v, np.ndarray)}


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """Measurements of one case; `modalities` is empty if it cannot be read."""

    case: Case
    problems: tuple[str, ...] = ()
    """Problems of its files."""
    notes: tuple[str, ...] = ()
    """What was assumed about the headers, and what is unusual (data/case_notes.py)."""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    """Orientation of the arrays in the files, such as LPS."""
    brain_voxels: int = 0
    slices: dict[str, int] = field(default_factory=dict)
    """By view: slices with enough foreground for training in every modality (preprocessing/slicing.py)."""
    modalities: dict[str, ModalityFacts] = field(default_factory=dict)
    labels: dict[str, int] | None = None
    """Voxels by label name; None without segmentation."""
    labels_outside: int = 0
    """Labelled voxels that are not brain."""
    thumbnails: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), object))
    """(modalities, 2): uint8 images through the middle of the brain, axial (x, y) and sagittal (y, z)."""
    coarse: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float16))
    """(modalities, x, y, z) float16: means of blocks, relative to the 99.5th percentile."""

    def to_dict(self) -> dict[str, Any]:
        """JSON content: everything but images and histograms."""
        return {
            "case": self.case.name,
            "cohort": self.case.cohort,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "orientation": self.orientation,
            "brain_voxels": self.brain_voxels,
            "slices": self.slices,
            "labels": self.labels,
            "labels_outside": self.labels_outside,
            "modalities": {m: facts.to_dict() for m, facts in self.modalities.items()},
        }


def inspect_case(case: Case, minimum_foreground: int = MINIMUM_FOREGROUND) -> CaseFacts:
    """Measurements of a case; problems of its files are part of the result."""
    volumes, problems = read_leniently(case)
    if volumes is None:
        return CaseFacts(case, tuple(problems))
    images = volumes.images
    brain = np.count_nonzero(images > 0, axis=0) * 2 >= len(images)
    if not brain.any():
        return CaseFacts(case, (*problems, f"{case.folder}: empty brain, no voxel is above 0"))
    image = volumes.reference.image
    labels, labels_outside = None, 0
    if volumes.labels is not None:
        labels = {
            name: int(np.count_nonzero(volumes.labels == v)) for v, name in case.modality_set.labels.items()
        }
        if case.modality_set.labels == BRATS.labels and (cavity := volumes.labels == CAVITY).any():
            labels[CAVITY_NAME] = int(np.count_nonzero(cavity))
        labels_outside = int(np.count_nonzero((volumes.labels > 0) & ~brain))
    scale = np.array([max(1.0, _percentile(v[v > 0], 99.5)) for v in images])
    return CaseFacts(
        case,
        tuple(problems),
        case_notes(volumes),
        images.shape[1:],
        tuple(round(float(s), 4) for s in np.linalg.norm(volumes.reference.affine[:3, :3], axis=0)),
        "".join(nibabel.aff2axcodes(image.affine)),
        int(np.count_nonzero(brain)),
        {view: len(kept_slices(images > 0, view, minimum_foreground)) for view in VIEWS},
        {
            m: measure(v, brain, str(dtype))
            for m, v, dtype in zip(volumes.modalities, images, volumes.stored_types)
        },
        labels,
        labels_outside,
        thumbnails(images, brain, scale),
        coarse(images, scale),
    )


def read_leniently(case: Case) -> tuple[CaseVolumes | None, list[str]]:
    """Volumes of a case (None: they cannot be read), and all problems that were found."""
    problems = [f"{case.folder}: no volume for {m}" for m in case.missing]
    if not case.available:
        return None, problems
    for round_values, segmentation in ((False, True), (True, True), (True, False)):
        try:
            return read_case(case, case.available, segmentation, round_values), problems
        except DataError as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    return None, problems


def measure(volume: np.ndarray, brain: np.ndarray, dtype: str) -> ModalityFacts:
    """Measurements of one volume (x, y, z) of integers, given the mask of the brain."""
    foreground = volume > 0
    values = volume[foreground] if foreground.any() else np.zeros(1, volume.dtype)
    p995, spread = _percentile(values, 99.5), float(values.std()) or 1.0
    rough, anisotropy = texture(volume, brain, spread)
    distinct, counts = np.unique(volume[foreground], return_counts=True)
    return ModalityFacts(
        dtype=dtype,
        minimum=int(volume.min()),
        maximum=int(volume.max()),
        voxels=int(np.count_nonzero(foreground)),
        negative=int(np.count_nonzero(volume < 0)),
        median=float(np.median(values)),
        p995=p995,
        mean=float(values.mean()),
        std=float(values.std()),
        distinct=max(1, len(distinct)),
        saturated=float(np.mean(values == values.max())),
        extra=int(np.count_nonzero(foreground & ~brain)),
        missing=int(np.count_nonzero(brain & ~foreground)),
        ends=end_areas(foreground),
        absent=absent_planes(foreground, brain),
        border=border_voxels(foreground),
        roughness=rough,
        anisotropy=anisotropy,
        repeated=repeated_planes(volume),
        sha256=hashlib.sha256(volume.astype(np.int32).tobytes()).hexdigest(),
        log_counts=np.histogram(values, LOG_EDGES)[0],
        unit_counts=np.histogram(values / max(p995, 1.0), UNIT_EDGES)[0],
        values=distinct.astype(np.int32),
        value_counts=counts.astype(np.int32),
    )


def end_areas(mask: np.ndarray) -> dict[str, float]:
    """For each side, area of the outermost plane with foreground by the largest area along that axis."""
    areas = []
    for axis in range(3):
        planes = np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis))
        hit = np.flatnonzero(planes)
        areas += [planes[hit[0]] / planes.max(), planes[hit[-1]] / planes.max()] if len(hit) else [0.0, 0.0]
    return {name: float(a) for name, a in zip(_ENDS, areas)}


def absent_planes(foreground: np.ndarray, brain: np.ndarray) -> dict[str, int]:
    """By axis, planes with at least 1 % of the largest plane of the brain in which there is no foreground."""
    counts = {}
    for axis, name in enumerate("xyz"):
        others = tuple(a for a in range(3) if a != axis)
        areas = np.count_nonzero(brain, axis=others)
        empty = ~foreground.any(axis=others)
        counts[name] = int(np.count_nonzero(empty & (areas > 0) & (areas >= 0.01 * areas.max())))
    return counts


def border_voxels(mask: np.ndarray) -> int:
    """Voxels of `mask` on the border of the volume."""
    inner = mask[1:-1, 1:-1, 1:-1]
    return int(np.count_nonzero(mask) - np.count_nonzero(inner))


def texture(volume: np.ndarray, brain: np.ndarray, spread: float) -> tuple[float, float]:
    """(roughness, anisotropy), see ModalityFacts."""
    inside = tuple(slice(h.min(), h.max() + 1) for h in np.nonzero(brain))
    v, mask = volume[inside].astype(np.float32), brain[inside]
    laplacian, core, steps = np.zeros_like(v), mask.copy(), []
    for axis in range(3):
        before, after = np.roll(v, 1, axis), np.roll(v, -1, axis)
        laplacian += before + after - 2 * v
        core &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        both = mask & np.roll(mask, -1, axis)
        both[tuple(slice(-1, None) if a == axis else slice(None) for a in range(3))] = False
        steps.append(float(np.abs(after - v)[both].mean()) if both.any() else 0.0)
    rough = float(np.abs(laplacian[core]).mean()) / spread if core.any() else 0.0
    return rough, max(steps) / min(steps) if min(steps) > 0 else float(max(steps) > 0) * 1e6 or 1.0


def repeated_planes(volume: np.ndarray) -> int:
    """Axial planes that are not empty and equal the plane before."""
    filled = np.asarray((volume > 0).any(axis=(0, 1)))
    equal = (volume[:, :, 1:] == volume[:, :, :-1]).all(axis=(0, 1))
    return int(np.count_nonzero(equal & filled[1:]))


def thumbnails(images_MXYZ: np.ndarray, brain: np.ndarray, scale_M: np.ndarray) -> np.ndarray:
    """(modalities, 2) uint8: axial and sagittal plane with most brain, from 0 to the 99.5th percentile."""
    z = int(np.argmax(np.count_nonzero(brain, axis=(0, 1))))
    x = int(np.argmax(np.count_nonzero(brain, axis=(1, 2))))
    tiles = np.empty((len(images_MXYZ), 2), object)
    for row, (volume, scale) in enumerate(zip(images_MXYZ, scale_M)):
        for column, plane in enumerate((volume[:, :, z], volume[x])):
            small = plane[::_TILE, ::_TILE] / scale
            tiles[row, column] = np.rint(255 * np.clip(small, 0, 1)).astype(np.uint8)
    return tiles


def coarse(images_MXYZ: np.ndarray, scale_M: np.ndarray) -> np.ndarray:
    """Means of blocks of 8 x 8 x 8 voxels; incomplete blocks at the far ends are left out."""
    m, *shape = images_MXYZ.shape
    side = min(_COARSE, *shape)
    x, y, z = (n // side for n in shape)
    cut = images_MXYZ[:, : x * side, : y * side, : z * side].reshape(m, x, side, y, side, z, side)
    return (cut.mean(axis=(2, 4, 6), dtype=np.float32) / scale_M[:, None, None, None]).astype(np.float16)


def _percentile(values: np.ndarray, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else 0.0
