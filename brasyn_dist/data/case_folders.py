"""Cohort folders to a checked list of cases: what there is, what is bad and why.

cohort folders --find_cohorts--> cases ------------> every file read once --examine--> Findings (bad cases, histogram)
                            \\--> problems that names alone show
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brasyn_dist.brats import BRATS, IMAGE_SIZE, VIEW_AXES, Case, case_folders, find_case, modality_of
from brasyn_dist.data.format.codec import DTYPES
from brasyn_dist.data.nifti import CaseMemory, CaseVolumes, read_case
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.intensity_scale import foreground_counts, median_of_counts
from brasyn_dist.preprocessing.statistics import Histogram


@dataclass(frozen=True)
class Problem:
    """A case that cannot be used, and why."""

    folder: Path
    cohort: str
    reason: str
    """One line for each thing that is wrong, with the file's path."""

    def __str__(self) -> str:
        return self.reason

    def to_dict(self) -> dict[str, str]:
        """For the index. Paths are cut down to the file's name: a set must not depend on where its input lay."""
        reason = self.reason.replace(f"{self.folder}/", "").replace(f"{self.folder.parent}/", "")
        return {"case": self.folder.name, "cohort": self.cohort, "reason": reason}


@dataclass
class Findings:
    """What reading cases showed. Findings of different workers add up."""

    histogram: Histogram
    """Of the training cases that can be used."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reason by case name."""
    dtype: str = "int16"
    """The smallest type of codec.DTYPES that holds every intensity."""
    medians: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the foreground of each modality, by name of each case that can be used."""

    def __iadd__(self, other: "Findings") -> "Findings":
        self.histogram.add(other.histogram.counts)
        self.problems |= other.problems
        self.medians |= other.medians
        self.dtype = max(self.dtype, other.dtype, key=DTYPES.index)
        return self


def find_cohorts(
    roots: Sequence[Path], modality_set: ModalitySet = BRATS
) -> tuple[list[Case], list[Problem]]:
    """Cases of all cohort folders, sorted by name; those that their names alone show to be bad come as problems.

    Raises DataError if a folder does not exist or holds no case.
    """
    cases: list[Case] = []
    problems: list[Problem] = []
    folders: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        for folder in case_folders(root, modality_set):
            folders[folder.name].append(folder)
            try:
                cases.append(_find_unmixed_case(folder, cohort_name(root), modality_set))
            except DataError as error:
                problems.append(Problem(folder, cohort_name(root), str(error)))
    for case in [c for c in cases if len(folders[c.name]) > 1]:
        others = [f"{f.parent.name}/{f.name}" for f in folders[case.name] if f != case.folder]
        reason = f"{case.folder}: {' and '.join(others) or 'the same folder, given twice,'} has this name too; rename or remove"
        problems.append(Problem(case.folder, case.cohort, reason))
    return sorted((c for c in cases if len(folders[c.name]) == 1), key=lambda c: c.name), problems


def cohort_name(root: Path) -> str:
    """Name of the folder as given: a link may give a cohort its name."""
    return root.name if root.name not in ("", "..") else root.resolve().name


def _find_unmixed_case(folder: Path, cohort: str, modality_set: ModalitySet) -> Case:
    """The case in `folder`. Raises DataError if its files are named after different cases."""
    case = find_case(folder, cohort, modality_set)
    named = {path: modality_of(path, modality_set) for path in case.files.values()}
    stems = sorted({name[0] for name in named.values() if name is not None})
    if len(stems) > 1:
        raise DataError(f"{folder}: files of different cases: {', '.join(stems)}; keep one case a folder")
    return case


def examine(
    cases: Sequence[Case],
    training: Collection[str],
    views: Sequence[str],
    round_values: bool = False,
    use: Callable[[CaseVolumes], object] = lambda volumes: None,
) -> Findings:
    """Read every volume of the cases, and count the voxels of those in `training`.

    `use` gets each good case, once, and must not keep it: the next one is read into the same memory.
    """
    findings, memory = Findings(Histogram(cases[0].modality_set)), CaseMemory()
    for case in cases:
        try:
            volumes = read_checked(case, views, round_values, memory)
        except DataError as error:
            findings.problems[case.name] = str(error)
            continue
        counts = [foreground_counts(*both) for both in zip(volumes.images, volumes.foreground)]
        findings.dtype = max(findings.dtype, volumes.images.dtype.name, key=DTYPES.index)
        findings.medians[case.name] = tuple(map(median_of_counts, counts))
        if case.name in training:
            findings.histogram.add(counts)
        use(volumes)
    return findings


def read_checked(
    case: Case, views: Sequence[str], round_values: bool = False, memory: CaseMemory | None = None
) -> CaseVolumes:
    """All modalities of a case and its labels. Raises DataError also for empty brains and slices that are too large."""
    volumes = read_case(case, round_values=round_values, memory=memory)
    empty = [name for name, foreground in zip(volumes.modalities, volumes.foreground) if not foreground.any()]
    if empty:
        raise DataError("\n".join(f"{case.files[m]}: empty brain, no voxel is above 0" for m in empty))
    for view in views:
        shape = [n for axis, n in enumerate(volumes.images.shape[1:]) if axis != VIEW_AXES[view]]
        if max(shape) > IMAGE_SIZE:
            raise DataError(
                f"{case.folder}: {view} slices: a slice of {max(shape)} pixels does not fit into {IMAGE_SIZE}; larger volumes "
                "are not supported"
            )
    return volumes


def input_hash(cases: Iterable[Case]) -> str:
    """SHA-256 over cohort, name and file sizes: tells one input from another wherever it lies."""
    lines = [
        f"{case.cohort}/{case.name}/{kind} {path.stat().st_size}"
        for case in cases
        for kind, path in sorted(case.files.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def modified_hash(cases: Iterable[Case]) -> str:
    """SHA-256 over the times at which the input files were last written: tells whether it was edited in between."""
    times = [path.stat().st_mtime_ns for case in cases for _, path in sorted(case.files.items())]
    return hashlib.sha256(repr(times).encode()).hexdigest()
