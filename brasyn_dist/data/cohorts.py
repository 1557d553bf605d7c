"""Cohort folders to a checked list of cases: who is in, who is held out, who is bad and why.

cohort folders --> cases --> split by patient --> every file read once --> problems, exact statistics
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brasyn_dist.brats import MODALITIES, Case, modality_of
from brasyn_dist.brats import read_case as list_case
from brasyn_dist.data.nifti import CaseVolumes, read_case
from brasyn_dist.data.statistics import Histogram
from brasyn_dist.errors import DataError

TRAIN, VALIDATION = "train", "val"


@dataclass(frozen=True)
class Problem:
    """A case that cannot be used, and why."""

    case: str
    cohort: str
    reason: str

    def __str__(self) -> str:
        return f"{self.cohort}/{self.case}: {self.reason}"


@dataclass
class Findings:
    """What reading cases showed. Findings of different workers add up."""

    histogram: Histogram = field(default_factory=Histogram)
    """Of the training cases that can be used."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reason by case name."""
    low: int = 0
    high: int = 0
    """Smallest and largest intensity anywhere."""

    def __iadd__(self, other: "Findings") -> "Findings":
        self.histogram += other.histogram
        self.problems |= other.problems
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        return self


def list_cases(cohorts: Sequence[Path]) -> tuple[list[Case], list[Problem]]:
    """Cases of all cohort folders, sorted by name; those that their names alone show to be bad come as problems."""
    cases: list[Case] = []
    problems: list[Problem] = []
    for root in cohorts:
        for folder in _case_folders(Path(root)):
            cohort = Path(root).resolve().name
            try:
                cases.append(list_case(folder, cohort))
            except DataError as error:
                problems.append(Problem(folder.name, cohort, str(error)))
    counts = Counter(case.name for case in cases)
    for case in [c for c in cases if counts[c.name] > 1]:
        problems.append(
            Problem(
                case.name,
                case.cohort,
                f"{case.folder}: {counts[case.name]} cases have this name; rename or remove",
            )
        )
    return sorted((c for c in cases if counts[c.name] == 1), key=lambda c: c.name), problems


def _case_folders(root: Path) -> list[Path]:
    """Folders with at least one BraTS volume. Raises DataError if there is none."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the case folders")
    folders = [
        p
        for p in sorted(root.iterdir())
        if p.is_dir() and not p.name.startswith(".") and any(modality_of(f) for f in p.iterdir())
    ]
    if not folders:
        raise DataError(f"{root}: no BraTS case found; expected folders such as CASE/CASE-t1c.nii.gz")
    return folders


def held_out_by_list(cases: Iterable[Case], names: Collection[str]) -> set[str]:
    """Names of the cases to hold out: those listed, and all others of the same patients. Unknown names raise DataError."""
    cases = list(cases)
    unknown = sorted(set(names) - {c.name for c in cases} - {c.patient for c in cases})
    if unknown:
        raise DataError(f"split list: no case or patient {unknown[0]} (and {len(unknown) - 1} more unknown)")
    patients = {c.patient for c in cases if c.name in names or c.patient in names}
    return {c.name for c in cases if c.patient in patients}


def held_out_by_fraction(cases: Iterable[Case], fraction: float, seed: int) -> set[str]:
    """Names of the cases to hold out: in each cohort the given fraction of patients, at least one of two or more.

    Patients are ranked by a hash of (seed, name), so that a case added later moves hardly anyone.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation fraction {fraction}: must be at least 0 and below 1")
    patients: dict[str, set[str]] = defaultdict(set)
    cases = list(cases)
    for case in cases:
        patients[case.cohort].add(case.patient)
    chosen: set[str] = set()
    for names in patients.values():
        count = round(fraction * len(names))
        if fraction and len(names) > 1:
            count = min(max(1, count), len(names) - 1)
        chosen |= set(sorted(names, key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest())[:count])
    return {c.name for c in cases if c.patient in chosen}


def read_split_list(path: Path) -> list[str]:
    """Names in a split file: a JSON list, or one name a line."""
    try:
        text = path.read_text()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return [str(name) for name in json.loads(text)]
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); expected a list of case names") from None


def examine(cases: Sequence[Case], training: Collection[str], round_values: bool) -> Findings:
    """Read every volume of the cases, and count the voxels of those in `training`."""
    findings = Findings()
    for case in cases:
        try:
            volumes = checked_case(case, round_values)
        except DataError as error:
            findings.problems[case.name] = str(error)
            continue
        findings.low = min(findings.low, int(volumes.images.min()))
        findings.high = max(findings.high, int(volumes.images.max()))
        if case.name in training:
            findings.histogram.add(volumes.images)
    return findings


def checked_case(case: Case, round_values: bool = False) -> CaseVolumes:
    """All four modalities of a case and its labels. Raises DataError also for a modality without any foreground."""
    volumes = read_case(case, MODALITIES, round_values=round_values)
    for name, image in zip(volumes.modalities, volumes.images):
        if not np.any(image > 0):
            raise DataError(f"{case.files[name]}: empty brain, no voxel is above 0")
    return volumes


def input_hash(cases: Iterable[Case]) -> str:
    """SHA-256 over cohort, name and file sizes: tells that the input of an interrupted run is still the same."""
    lines = [
        f"{case.cohort}/{case.name}/{kind} {path.stat().st_size}"
        for case in cases
        for kind, path in sorted(case.files.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
