"""What BraTS says: modality order, labels, regions, views, case and file names. The only place that knows.

Editions differ in names (`-t1n.nii.gz` since 2023, `_t1.nii.gz` before), in the label of enhancing tumour (3 since 2023,
4 before) and in file endings; predictions may number the labels in yet another order. Everything past this module speaks the canonical form: modality order `MODALITIES`,
labels `NETC`, `ED`, `ET`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet

MODALITIES = ("t1c", "t1n", "t2f", "t2w")
"""Channel order of every 4-plane array and of published weights (thesis, Table 4.1)."""

MODALITY_NAMES = {"t1c": "T1 contrast-enhanced", "t1n": "T1 native", "t2f": "T2-FLAIR", "t2w": "T2-weighted"}

VIEWS = ("axial", "sagittal", "coronal")
"""Index is the value that the view embedding takes (0 axial, 1 sagittal, 2 coronal)."""

VIEW_AXES = {"axial": 2, "sagittal": 0, "coronal": 1}
"""Array axis along which a view's slices lie, volumes being (x, y, z) in LPS order."""

TUMOUR_TYPES = ("GLI", "MET")
"""Gliomas and metastases. Index is the value that a segmenter's one-hot takes."""
UNKNOWN_TYPE = -1
"""Any other tumour, or not known: a one-hot of zeros."""

VOLUME_SHAPE = (240, 240, 155)
IMAGE_SIZE = 240
"""Side of the square slice that the networks see, in pixels of 1 mm."""
ImageSize = int | tuple[int, int]
"""Side of a square, or (rows H, columns W) of a rectangle."""


def image_shape(size: ImageSize) -> tuple[int, int]:
    """(H, W)."""
    return (size, size) if isinstance(size, int) else size


BACKGROUND, NETC, ED, ET = 0, 1, 2, 3
LABEL_NAMES = {NETC: "necrotic / non-enhancing core", ED: "oedema", ET: "enhancing tumour"}
REGIONS = {"ET": (ET,), "TC": (NETC, ET), "WT": (NETC, ED, ET)}

LabelOrder = Literal["brats", "nnunet"]
LABEL_ORDERS: dict[LabelOrder, dict[int, int]] = {
    "brats": {0: BACKGROUND, 1: NETC, 2: ED, 3: ET, 4: ET},
    "nnunet": {0: BACKGROUND, 1: ED, 2: NETC, 3: ET},
}
"""Stored value -> canonical label. `brats`: what BraTS publishes, 3 (2023 and later) and 4 (to 2021) never in one file.

`nnunet`: what networks trained in nnU-Net's BraTS conversion predict. Its values are those of 2023's order, so no file shows
which of the two it is in: whoever reads predictions has to say.
"""

# Suffix of a file's stem -> canonical modality. Longer ones first: `_t1ce` must not be read as `_t1`.
_SUFFIXES = {
    "t1c": "t1c", "t1n": "t1n", "t2f": "t2f", "t2w": "t2w", "seg": "seg",
    "t1ce": "t1c", "t1gd": "t1c", "flair": "t2f", "t1": "t1n", "t2": "t2w",
}  # fmt: skip
BRATS = ModalitySet("brats", MODALITIES, MODALITY_NAMES, _SUFFIXES, LABEL_NAMES, REGIONS)
"""The preset: what shard sets and exports hold that do not name a modality set."""

_FILE = re.compile(
    r"^(?P<stem>.+)[-_](?P<suffix>t1ce|t1gd|t1c|t1n|t2f|t2w|flair|seg|t1|t2)\.nii(\.gz)?$", re.I
)
_TIMEPOINT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d{3}$")


@dataclass(frozen=True)
class Case:
    """One subject on disk: its folder and the files found in it; a modality may be missing.

    `files` maps `t1c`, `t1n`, `t2f`, `t2w` and `seg` to paths.
    """

    name: str
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    cohort: str = ""

    @property
    def patient(self) -> str:
        """Name without the time point (BraTS-GLI-00005-100 -> BraTS-GLI-00005): what a split must not cut through."""
        match = _TIMEPOINT.match(self.name)
        return match.group(1) if match else self.name

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(m for m in MODALITIES if m not in self.files)

    @property
    def available(self) -> tuple[str, ...]:
        return tuple(m for m in MODALITIES if m in self.files)


def modality_of(path: Path) -> tuple[str, str] | None:
    """(case name, canonical modality or `seg`) that a file's name tells, or None if it is no BraTS volume."""
    match = _FILE.match(path.name)
    return (match["stem"], _SUFFIXES[match["suffix"].lower()]) if match else None


def find_case(folder: Path, cohort: str = "") -> Case:
    """The case in `folder`, named after the folder. Raises DataError if one modality has two files."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        named = modality_of(path)
        if named is None or path.name.startswith("."):
            continue
        if named[1] in files:
            raise DataError(
                f"{folder}: two files for {named[1]}: {files[named[1]].name} and {path.name}; keep one of them"
            )
        files[named[1]] = path
    return Case(folder.name, folder, files, cohort)


def find_cases(root: Path, cohort: str | None = None) -> list[Case]:
    """Cases directly below `root` (folders holding at least one BraTS volume), sorted by name.

    `cohort` defaults to the name of `root`. Raises DataError if `root` is no folder or holds no case.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the case folders")
    cohort = root.resolve().name if cohort is None else cohort
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    cases = [case for case in (find_case(folder, cohort) for folder in folders) if case.files]
    if not cases:
        raise DataError(
            f"{root}: no BraTS case found; expected folders such as CASE/CASE-t1c.nii.gz (or _t1ce, _flair, .nii)"
        )
    return cases


def canonical_labels(
    labels: np.ndarray, where: object = "segmentation", order: LabelOrder = "brats"
) -> np.ndarray:
    """Labels as uint8 in the canonical order (1 NETC, 2 ED, 3 ET), from the order that the file is in (LABEL_ORDERS).

    Within `brats`, the editions are told apart by their values. Values that the order does not have, or 3 and 4 together,
    raise DataError naming `where`: their meaning cannot be known.
    """
    if order not in LABEL_ORDERS:
        raise DataError(f"{where}: unknown label order {order!r}; choose from {', '.join(LABEL_ORDERS)}")
    # Only the few voxels that have a label are looked at: sorting a whole volume costs more than reading it.
    flat = labels.ravel(order="F")
    labelled = np.flatnonzero(flat != 0)  # of truth values it is ten times faster
    found = flat[labelled]
    values = {0.0, *map(float, np.unique(found))}
    meanings = LABEL_ORDERS[order]
    if values - set(meanings) or {3.0, 4.0} <= values:
        expected = (
            "0, 1, 2, 3" if order == "nnunet" else "0, 1, 2 and either 3 (2023 and later) or 4 (to 2021)"
        )
        raise DataError(f"{where}: unknown labels {sorted(values)} in order {order}; expected {expected}")
    table = np.zeros(max(meanings) + 1, np.uint8)
    table[list(meanings)] = list(meanings.values())
    canonical = np.zeros(labels.shape, np.uint8, order="F")
    canonical.ravel(order="F")[labelled] = table[found.astype(np.uint8)]
    return canonical


def tumour_type(cohort: str, case: str) -> int:
    """Number of the tumour type in TUMOUR_TYPES, as the case's name tells it (`BraTS-MET-...`), or else its cohort's.

    Editions up to 2021 (`BraTS2021_...`, `BraTS20_...`) have gliomas only. UNKNOWN_TYPE if neither name tells.
    """
    for name in (case, cohort):
        words = re.split(r"[^A-Z]+", name.upper())
        for number, kind in enumerate(TUMOUR_TYPES):
            if kind in words:
                return number
    return (
        TUMOUR_TYPES.index("GLI")
        if re.match(r"brats(1[5-9]|20|201\d|202[01])_", case, re.I)
        else UNKNOWN_TYPE
    )


def region_mask(labels: np.ndarray, region: str) -> np.ndarray:
    """Boolean mask of region `ET`, `TC` or `WT` in canonical labels."""
    return np.isin(labels, REGIONS[region])


def prediction_name(case: str, modality: str) -> str:
    """File name of a synthesised volume: `<case>-<modality>.nii.gz`."""
    return f"{case}-{modality}.nii.gz"


def available_mask(available: Iterable[str]) -> np.ndarray:
    """(4,) bool in modality order."""
    names = set(available)
    return np.array([m in names for m in MODALITIES])
