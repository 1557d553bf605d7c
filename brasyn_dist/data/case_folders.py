r"""Cases of cohort folders, and the checks that each case must pass.

cohort folders --find_cohorts--> cases with usable names --read_usable_case--> CaseVolumes, or DataError
                          \--> BadCase: problems that the names alone show
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brasyn_dist.brats import (
    BRATS,
    IMAGE_SIZE,
    VIEW_AXES,
    Case,
    case_folders,
    find_case,
    modality_of,
)
from brasyn_dist.common.files import os_error_text
from brasyn_dist.data.nifti import CaseVolumes, read_case
from brasyn_dist.errors import BrasynError, DataError
from brasyn_dist.modality_set import ModalitySet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadCase:
    """A case that cannot be used, and the reason."""

    folder: Path
    cohort: str
    reason: str
    """One line for each problem, with the path of the file."""

    def to_dict(self) -> dict[str, str]:
        """Entry of the index.

        Paths are reduced to file names: a set must not depend on the location of its input.
        """
        reason = self.reason.replace(f"{self.folder}/", "").replace(f"{self.folder.parent}/", "")
        return {"case": self.folder.name, "cohort": self.cohort, "reason": reason}


def find_cohorts(
    roots: Sequence[Path], modality_set: ModalitySet = BRATS
) -> tuple[list[Case], list[BadCase]]:
    """Cases of all cohort folders, sorted by name, and the cases whose names show that they cannot be used.

    Args:
        roots: Cohort folders; each contains case folders.
        modality_set: Defines the file names.

    Raises:
        DataError: A folder does not exist or has no case.
    """
    cases: list[Case] = []
    bad: list[BadCase] = []
    folders: dict[str, list[Path]] = defaultdict(list)
    for root in roots:
        cohort = cohort_name(root)
        for folder in case_folders(root, modality_set):
            folders[folder.name].append(folder)
            try:
                cases.append(_find_unmixed_case(folder, cohort, modality_set))
            except DataError as error:
                bad.append(BadCase(folder, cohort, str(error)))
            except OSError as error:
                bad.append(BadCase(folder, cohort, os_error_text(error)))
    for case in cases:
        others = [f"{f.parent.name}/{f.name}" for f in folders[case.name] if f != case.folder]
        if len(folders[case.name]) > 1:
            twin = " and ".join(others) or "the same folder, given twice,"
            bad.append(
                BadCase(
                    case.folder, case.cohort, f"{case.folder}: {twin} has this name too; rename or remove"
                )
            )
    return sorted((c for c in cases if len(folders[c.name]) == 1), key=lambda c: c.name), bad


def describe_bad_cases(bad: Sequence[BadCase], consequence: str) -> str:
    """All problems of all bad cases, one on each line, as a message."""
    lines = "\n  ".join(line for case in bad for line in case.reason.splitlines())
    count = f"{len(bad)} bad case{'s' if len(bad) > 1 else ''}"
    return f"{count}, {consequence}:\n  {lines}\nRepair them, or leave them out with --skip-bad"


def usable_cases(
    roots: Sequence[Path], modality_set: ModalitySet = BRATS, skip_bad: bool = False, complete: bool = False
) -> list[Case]:
    """Cases of all cohort folders, sorted by name.

    Args:
        roots: Cohort folders.
        modality_set: Defines the file names.
        skip_bad: Leave out bad cases with a warning for each problem.
        complete: Cases that lack a modality are bad, too.

    Raises:
        DataError: Some cases are bad (all are listed), or none is left.
    """
    cases, bad = find_cohorts(roots, modality_set)
    if complete:
        bad += [
            BadCase(c.folder, c.cohort, f"{c.folder}: no volume for {', '.join(c.missing)}")
            for c in cases
            if c.missing
        ]
        cases = [c for c in cases if not c.missing]
    return without_bad(cases, bad, skip_bad)


def without_bad(cases: Sequence[Case], bad: Sequence[BadCase], skip_bad: bool) -> list[Case]:
    """The cases that are not bad; each problem is logged.

    Raises:
        DataError: Some cases are bad and `skip_bad` is not set (all are listed), or none is left.
    """
    folders = {case.folder for case in bad}
    good = [case for case in cases if case.folder not in folders]
    if bad and not (skip_bad and good):
        raise DataError(describe_bad_cases(bad, "nothing was done"))
    for case in bad:
        for line in case.reason.splitlines():
            log.warning("left out: %s", line)
    return good


def unreadable_cases(cases: Sequence[Case], labels: bool = False) -> list[BadCase]:
    """Cases of which a volume, or with `labels` the segmentation, cannot be used."""
    bad = []
    for case in cases:
        try:
            read_case(case, segmentation=labels)
        except BrasynError as error:
            bad.append(BadCase(case.folder, case.cohort, str(error)))
    return bad


def with_linked_cohorts(cases: Sequence[Case]) -> list[Case]:
    """The cases; those whose folders are links belong to the cohorts that they lead to.

    `brasyn study` and `brasyn demo` link the evaluation cases of several cohorts into one folder.
    """
    return [replace(c, cohort=c.folder.resolve().parent.name) if c.folder.is_symlink() else c for c in cases]


def cohort_name(root: Path) -> str:
    """Name of the folder as given, so that a symbolic link can name a cohort."""
    return root.name if root.name not in ("", "..") else root.resolve().name


def _find_unmixed_case(folder: Path, cohort: str, modality_set: ModalitySet) -> Case:
    """The case in `folder`. Raises DataError if its files are named after different cases."""
    case = find_case(folder, cohort, modality_set)
    # A volume in a folder of its name may have any name itself.
    named = [modality_of(path, modality_set) for path in case.files.values() if path.parent == folder]
    stems = sorted({name[0] for name in named if name is not None})
    if len(stems) > 1:
        raise DataError(f"{folder}: files of different cases: {', '.join(stems)}; keep one case in a folder")
    return case


def read_usable_case(
    case: Case,
    views: Sequence[str],
    round_values: bool = False,
    assume: str | None = None,
) -> CaseVolumes:
    """All modalities of a case and its labels.

    Args:
        case: Case with the paths.
        views: Views whose slices must fit into IMAGE_SIZE.
        round_values: Round values that are not whole numbers instead of refusing them.
        assume: Order of the axes of files whose headers state none.

    Raises:
        DataError: A file is unusable (see `nifti.read_case`), a header states no orientation and `assume` is
            None, a brain is empty, or a slice is too large.
    """
    volumes = read_case(case, round_values=round_values, assume=assume)
    if volumes.unoriented and assume is None:
        raise DataError(
            "\n".join(
                f"{path}: the header states no orientation, or contradicting ones; state it: --assume LPS"
                for path in volumes.unoriented
            )
        )
    empty = [m for m, foreground in zip(volumes.modalities, volumes.foreground) if not foreground.any()]
    if empty:
        raise DataError("\n".join(f"{case.files[m]}: empty brain, no voxel is above 0" for m in empty))
    for view in views:
        side = max(n for axis, n in enumerate(volumes.images.shape[1:]) if axis != VIEW_AXES[view])
        if side > IMAGE_SIZE:
            raise DataError(
                f"{case.folder}: {view} slices: a slice of {side} pixels does not fit into "
                f"{IMAGE_SIZE}; larger volumes "
                "are not supported"
            )
    return volumes


def input_hash(cases: Iterable[Case]) -> str:
    """SHA-256 of cohort, name and file sizes. It does not depend on the location of the files."""
    lines = [
        f"{case.cohort}/{case.name}/{kind} {path.stat().st_size}"
        for case in cases
        for kind, path in sorted(case.files.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def modified_hash(cases: Iterable[Case]) -> str:
    """SHA-256 of the modification times of the input files."""
    times = [path.stat().st_mtime_ns for case in cases for _, path in sorted(case.files.items())]
    return hashlib.sha256(repr(times).encode()).hexdigest()
