"""The BraTS preset: modality order, labels, regions, views, and names of cases and files.

Editions differ in file names (`-t1n.nii.gz` since 2023, `_t1.nii.gz` before), in their labels (LABEL_ORDERS)
and in file endings. Predictions may number the labels in another order. All other modules use the canonical
form: the modality order of a `ModalitySet` and its label values.
"""

import json
import logging
import os
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet, read_modality_set

log = logging.getLogger(__name__)
MODALITIES = ("t1c", "t1n", "t2f", "t2w")
"""Channel order of BraTS arrays and of the published weights."""

MODALITY_NAMES = {"t1c": "T1 contrast-enhanced", "t1n": "T1 native", "t2f": "T2-FLAIR", "t2w": "T2-weighted"}

VIEWS = ("axial", "sagittal", "coronal")
"""The index is the input of the view embedding (0 axial, 1 sagittal, 2 coronal)."""

VIEW_AXES = {"axial": 2, "sagittal": 0, "coronal": 1}
"""Array axis along which the slices of a view are numbered; volumes are (x, y, z) in LPS order."""

TUMOUR_TYPES = ("GLI", "MET")
"""Gliomas and metastases. Index is the position in a segmenter's one-hot vector."""
UNKNOWN_TYPE = -1
"""Another tumour (MEN, PED, ...), or unknown: the one-hot vector is zero."""

VOLUME_SHAPE = (240, 240, 155)
IMAGE_SIZE = 240
"""Side of the square slice that the networks see, in pixels of 1 mm."""
ImageSize = int | tuple[int, int]
"""Side of a square, or (rows H, columns W) of a rectangle."""


def image_shape(size: ImageSize) -> tuple[int, int]:
    """(H, W) of a slice."""
    return (size, size) if isinstance(size, int) else size


BACKGROUND, NETC, ED, ET = 0, 1, 2, 3
LABEL_NAMES = {NETC: "necrotic / non-enhancing core", ED: "oedema", ET: "enhancing tumour"}
REGIONS = {"ET": (ET,), "TC": (NETC, ET), "WT": (NETC, ED, ET)}

CAVITY = 4
"""Resection cavity of the edition of 2024: neither tumour nor healthy tissue. It is no label of BRATS, so
that networks keep their classes."""

LabelOrder = Literal["brats", "nnunet", "brats2021", "brats2023", "brats2024", "ped"]
LABEL_ORDERS: dict[LabelOrder, dict[int, int]] = {
    "brats": {0: BACKGROUND, 1: NETC, 2: ED, 3: ET, 4: ET},
    "nnunet": {0: BACKGROUND, 1: ED, 2: NETC, 3: ET},
    "brats2021": {0: BACKGROUND, 1: NETC, 2: ED, 4: ET},
    "brats2023": {0: BACKGROUND, 1: NETC, 2: ED, 3: ET},
    "brats2024": {0: BACKGROUND, 1: NETC, 2: ED, 3: ET, 4: CAVITY},
    "ped": {0: BACKGROUND, 1: ET, 2: NETC, 3: NETC, 4: ED},
}
"""Stored value -> canonical label.

The editions `brats2021` (and earlier), `brats2023`, `brats2024` (4: resection cavity) and `ped` (BraTS-PED of
2024: 1 enhancing, 2 non-enhancing, 3 cyst, 4 oedema) are decided for a whole cohort (data/label_editions.py).
`brats`: 2021 or 2023, by the values of each file; 3 and 4 never occur in one file. `nnunet`: predictions of
networks that were trained with nnU-Net's BraTS conversion. A file does not show its order.
"""
_WHOLE = 1e-3
"""Labels may differ by this much from whole numbers; headers with a scale factor produce such values."""
IMAGE = re.compile(r"\.(nii(\.gz)?|mha|mhd|nrrd|mgz|mgh|img|hdr|dcm)$", re.I)
"""Endings of files that look like volumes."""
_OTHER_FORMAT = re.compile(
    r"\.(mha|mhd|nrrd|nhdr|mgz|mgh|mnc|img|hdr|nii\.(bz2|xz|zst|zip)|nii(\.gz)?\.(part|partial|crdownload))"
    r"(\.gz)?$",
    re.I,
)
"""Endings of volumes that are not read, and of downloads that are not complete."""
_LISTED = 12
"""Most values of a file that a message lists."""

_SUFFIXES = {
    "t1c": "t1c", "t1n": "t1n", "t2f": "t2f", "t2w": "t2w", "seg": "seg",
    "t1ce": "t1c", "t1gd": "t1c", "flair": "t2f", "t1": "t1n", "t2": "t2w",
}  # fmt: skip
BRATS = ModalitySet("brats", MODALITIES, MODALITY_NAMES, _SUFFIXES, LABEL_NAMES, REGIONS)
"""Modality set of all shard sets and exports that do not name one."""


def modality_set_in(path: Path | None) -> ModalitySet:
    """Modality set of a file; without one, BraTS."""
    return BRATS if path is None else read_modality_set(path)


_TIMEPOINT = re.compile(
    r"""^(?P<patient>
        BraTS(-[A-Z]+)+-\d+(?=-\d+$)                        # BraTS-GLI-00005-100, BraTS-MEN-RT-0001-1
        | UPENN-GBM-\d+(?=_\d+$)                            # UPENN-GBM-00001_11
        | .+?(?=[-_](ses|session|week|day|month|tp|time|timepoint|visit|scan|fu)[-_]?\d[\w.-]*$)
        | .+?(?=[-_](19|20)\d\d[.-]?\d\d[.-]?\d\d$)         # TCGA-02-0006_1996.08.23
        | .+?(?=[ _-]*(\(\d+\)|copy(\s*\(?\d+\)?)?)$)        # copies: CASE (1), CASE - Copy
    )""",
    re.I | re.X,
)


@dataclass(frozen=True)
class Case:
    """One subject on disk: its folder and the files found in it; a modality may be missing."""

    name: str
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    """Modality or `seg` -> path."""
    cohort: str = ""
    modality_set: ModalitySet = BRATS
    label_order: LabelOrder = "brats"
    """Order of the labels in its segmentation."""
    patient_id: str = ""
    """Patient, if it is not the one of the name (data/patients.py)."""

    @property
    def patient(self) -> str:
        """Given patient, or the name without the time point: BraTS-GLI-00005-100 -> BraTS-GLI-00005."""
        return self.patient_id or patient_of(self.name)

    @property
    def missing(self) -> tuple[str, ...]:
        """Modalities without a file."""
        return tuple(m for m in self.modality_set.modalities if m not in self.files)

    @property
    def available(self) -> tuple[str, ...]:
        """Modalities with a file."""
        return tuple(m for m in self.modality_set.modalities if m in self.files)


def patient_of(name: str) -> str:
    """Name of a case without its time point, session or number of a copy."""
    match = _TIMEPOINT.match(name)
    return patient_of(match["patient"]) if match else name


def modality_of(path: Path, modality_set: ModalitySet = BRATS) -> tuple[str, str] | None:
    """(case name, modality or `seg`) from a file name, or None if the name has another form."""
    return modality_set.parse_file_name(path.name)


def find_case(folder: Path, cohort: str = "", modality_set: ModalitySet = BRATS) -> Case:
    """The case in `folder`, named after the folder.

    Raises:
        DataError: One modality has two files or one of another format, a file is no regular file, or a name
            is too long or not UTF-8.
    """
    files: dict[str, Path] = {}
    check_name(folder)
    if len(folder.name.encode()) > LONGEST_NAME:
        raise DataError(
            f"{folder.parent}/{folder.name[:20]}...: a name of {len(folder.name.encode())} bytes, the names "
            f"of results would be too long; rename the folder to at most {LONGEST_NAME}"
        )
    paths = sorted(folder.iterdir())
    for path in paths:
        named = modality_of(path, modality_set)
        if named is None or path.name.startswith("."):
            continue
        check_name(path)
        path = regular_file(path)
        if named[1] in files:
            raise DataError(
                f"{folder}: two files for {named[1]}: {files[named[1]].name} and {path.name}; keep "
                "one of them"
            )
        files[named[1]] = path
    for path in paths:
        named = modality_of(path.with_name(_OTHER_FORMAT.sub(".nii", path.name)), modality_set)
        if named is not None and named[1] not in files and not path.name.startswith("."):
            raise DataError(f"{path}: no NIfTI file; convert it, or complete its download, to .nii.gz")
    return Case(folder.name, folder, files, cohort, modality_set)


def check_name(path: Path) -> None:
    """Raise DataError if the name is not UTF-8: it cannot be stored in JSON, CSV and HTML files."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8; rename it") from None


def regular_file(path: Path) -> Path:
    """The file itself, or the only volume in a folder of its name.

    Raises:
        DataError: There is no such file; a device or pipe would be read for ever.
    """
    if path.is_file():
        return path
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: a link to nothing; fetch its content (such as by `datalad get`)")
    inside = (
        [p for p in sorted(path.iterdir()) if p.is_file() and IMAGE.search(p.name)] if path.is_dir() else []
    )
    if len(inside) == 1 and inside[0].name.lower().endswith((".nii", ".nii.gz")):
        return inside[0]
    raise DataError(
        f"{path}: a {'folder' if path.is_dir() else 'device or pipe'}; put the volume in its place"
    )


LONGEST_NAME = 215
"""Most bytes of the name of a case. The names of its results and of their temporary files, which contain it,
may have 255."""
PREDICTIONS_MANIFEST = "manifest.json"
PREDICTIONS_FORMAT = "brasyn_dist.predictions"


def is_prediction_folder(folder: Path) -> bool:
    """Whether the folder contains a manifest of predictions and is therefore not a case."""
    try:
        return json.loads((folder / PREDICTIONS_MANIFEST).read_text())["format"] == PREDICTIONS_FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_cases(root: Path, cohort: str | None = None, modality_set: ModalitySet = BRATS) -> list[Case]:
    """Cases directly below `root`: folders with at least one volume, sorted by name.

    Args:
        root: Folder of case folders.
        cohort: Cohort of the cases; None: the name of `root`.
        modality_set: Defines the file names.

    Raises:
        DataError: `root` is not a folder or has no case.
    """
    root = Path(root)
    cohort = root.resolve().name if cohort is None else cohort
    return [find_case(folder, cohort, modality_set) for folder in case_folders(root, modality_set)]


def _with_cases(root: Path, modality_set: ModalitySet) -> list[Path]:
    """The first folders below `root` that contain case folders."""
    below = (f for f in sorted(root.iterdir()) if any(modality_of(p, modality_set) for p in f.glob("*/*")))
    return list(islice(below, _LISTED))


def case_folders(root: Path, modality_set: ModalitySet = BRATS) -> list[Path]:
    """Folders directly below `root` with at least one volume, sorted by name, without predictions.

    If there are none and `root` has volumes of one case, `root` itself is the case folder.

    Raises:
        DataError: `root` is not a folder or has no case.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the case folders")
    folders, unknown = [], []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            files = [p for p in folder.iterdir() if not p.name.startswith(".")]
        except OSError as error:
            log.warning("%s: cannot be read (%s); left out", folder, error.strerror)
            continue
        if is_prediction_folder(folder):
            continue
        if any(modality_of(p, modality_set) for p in files):
            folders.append(folder)
        elif images := sorted(p.name for p in files if IMAGE.search(p.name)):
            unknown.append(f"{folder.name}/{images[0]}")
    named = {m[0] for p in root.iterdir() if p.is_file() and (m := modality_of(p, modality_set))}
    if not folders and len(named) == 1 and not is_prediction_folder(root):
        return [root]
    first = next(iter(modality_set.suffixes), modality_set.modalities[0])
    examples = "(or _t1ce, _flair, .nii)" if modality_set is BRATS else "(or .nii)"
    expected = f"expected folders such as CASE/CASE-{first}.nii.gz {examples}"
    more = "" if len(unknown) <= _LISTED else f" and {len(unknown) - _LISTED} more"
    listed = ", ".join(unknown[:_LISTED]) + more
    if not folders:
        kind = "BraTS case" if modality_set is BRATS else f"case of modality set {modality_set.name}"
        found = f"; found {listed}" if unknown else ""
        if deeper := _with_cases(root, modality_set):
            found = f"; the cases are one level deeper, give {' or '.join(map(str, deeper))}"
        raise DataError(f"{root}: no {kind} found; {expected}{found}")
    if unknown:
        log.warning(
            "%s: %d folders hold images but are no cases and are left out: %s; %s",
            root,
            len(unknown),
            listed,
            expected,
        )
    return folders


def canonical_labels(
    labels: np.ndarray,
    where: object = "segmentation",
    order: LabelOrder = "brats",
    modality_set: ModalitySet = BRATS,
) -> np.ndarray:
    """Labels as uint8 with the values of `modality_set`.

    Orders are those of BraTS; other modality sets have one order only.

    Args:
        labels: Values as stored in a file.
        where: Start of error messages.
        order: Order of the labels in the file, a key of LABEL_ORDERS. Only for the labels of BraTS.
        modality_set: Defines the labels.

    Raises:
        DataError: A value is not in the order; or, in order `brats`, 3 and 4 occur together.
    """
    if order not in LABEL_ORDERS:
        raise DataError(f"{where}: unknown label order {order!r}; choose from {', '.join(LABEL_ORDERS)}")
    # Only labelled voxels are examined: sorting a whole volume takes longer than reading it.
    flat = labels.ravel(order="F")
    labelled = np.flatnonzero(flat != 0)  # ten times faster on a boolean array
    found = flat[labelled]
    values = np.unique(found)
    if found.dtype.kind == "f" and np.abs(values - np.rint(values)).max(initial=0) <= _WHOLE:
        found, values = np.rint(found), np.unique(np.rint(values))
    is_brats = modality_set.labels == LABEL_NAMES
    meanings = LABEL_ORDERS[order] if is_brats else {value: value for value in (0, *modality_set.labels)}
    unknown = not set(values.tolist()) <= set(meanings)
    if unknown or (is_brats and order == "brats" and {3, 4} <= set(values.tolist())):
        expected = ", ".join(map(str, meanings))
        if is_brats and order == "brats":
            expected = "0, 1, 2 and either 3 (2023) or 4 (to 2021); for both, give --label-edition"
        scheme = order if is_brats else modality_set.name
        raise DataError(
            f"{where}: unknown labels {describe_values(values)} in order {scheme}; expected {expected}"
        )
    table = np.zeros(max(meanings) + 1, np.uint8)
    table[list(meanings)] = list(meanings.values())
    canonical = np.zeros(labels.shape, np.uint8, order="F")
    canonical.ravel(order="F")[labelled] = table[found.astype(np.uint8)]
    return canonical


def describe_values(values: np.ndarray) -> str:
    """Sorted label values in one short line."""
    if len(values) > _LISTED:
        return (
            f"({len(values):,} different values from {values[0]:g} to {values[-1]:g}: interpolated? "
            "resample segmentations by nearest neighbour)"
        )
    return f"[{', '.join(f'{v:g}' for v in values)}]"


def tumour_type(cohort: str, case: str) -> int:
    """Index in TUMOUR_TYPES, from the case name (`BraTS-MET-...`), otherwise from the cohort name.

    Editions up to 2021 (`BraTS2021_...`, `BraTS20_...`) have gliomas only. UNKNOWN_TYPE if neither name
    contains a type.
    """
    named = re.match(r"BraTS-([A-Z]+)-", case, re.I)
    for name in (named[1],) if named else (case, cohort):
        words = re.split(r"[^A-Z]+", name.upper())
        for number, kind in enumerate(TUMOUR_TYPES):
            if kind in words:
                return number
    return (
        TUMOUR_TYPES.index("GLI")
        if re.match(r"brats(1[5-9]|20|201\d|202[01])_", case, re.I)
        else UNKNOWN_TYPE
    )


def prediction_name(case: str, modality: str) -> str:
    """File name of a synthesised volume: `<case>-<modality>.nii.gz`."""
    return f"{case}-{modality}.nii.gz"
