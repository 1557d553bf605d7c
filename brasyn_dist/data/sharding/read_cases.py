r"""First pass of sharding: every case is read once, in parallel.

cases --in groups, to the workers--> histogram, medians, problems of each group --> ReadResult
                              \--> encoded samples of good cases in the staging folder
"""

import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from brasyn_dist.brats import Case
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.data.case_folders import BadCase, read_usable_case
from brasyn_dist.data.case_notes import case_notes, equal_volumes, refuse
from brasyn_dist.data.format.codec import DTYPES
from brasyn_dist.data.patients import unite_equal
from brasyn_dist.data.sharding.options import ShardOptions
from brasyn_dist.data.sharding.stage1_volumes import read_stage1
from brasyn_dist.data.sharding.staging import is_staged, stage_volumes
from brasyn_dist.errors import BrasynError
from brasyn_dist.preprocessing.intensity_scale import foreground_counts, median_of_counts
from brasyn_dist.preprocessing.statistics import Histogram

log = logging.getLogger(__name__)
LISTED = 20
"""Most notes that are logged; all are in the index."""


@dataclass
class CaseReadings:
    """Result of reading cases. The results of different workers are added."""

    histogram: Histogram
    """Foreground of the training cases."""
    problems: dict[str, str] = field(default_factory=dict)
    """Case name -> reason."""
    dtype: str = DTYPES[0]
    """Smallest type that stores every intensity."""
    medians: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each good case -> median of the foreground of each modality."""
    stage1_medians: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The same of the stage-1 volumes, if there are any."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of each good case -> shape of its volumes."""
    fingerprints: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each good case -> hash of the intensity histogram of each modality: equal volumes are found."""
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each case with notes (data/case_notes.py) -> its notes."""

    def __iadd__(self, other: "CaseReadings") -> "CaseReadings":
        self.histogram.add(other.histogram.counts)
        self.problems |= other.problems
        self.medians |= other.medians
        self.stage1_medians |= other.stage1_medians
        self.shapes |= other.shapes
        self.fingerprints |= other.fingerprints
        self.notes |= other.notes
        self.dtype = max(self.dtype, other.dtype, key=DTYPES.index)
        return self


@dataclass(frozen=True)
class ReadResult:
    """Result of the first pass over all cases."""

    cases: list[Case]
    """Good cases."""
    training: set[str]
    """Names of the training cases; the statistics are theirs."""
    readings: CaseReadings
    bad: list[BadCase]


def read_cases(
    cases: Sequence[Case], options: ShardOptions, dtype: str, work: Path, workers: int
) -> ReadResult:
    """Read all cases, and encode the samples of those that `dtype` can store into the staging folder `work`.

    Bad cases have no influence on the result: the split is drawn among the good ones.
    """
    presumed = options.training(cases)
    readings = _read_parallel("read and encode", cases, presumed, options, dtype, work, workers)
    bad = [
        BadCase(c.folder, c.cohort, readings.problems[c.name]) for c in cases if c.name in readings.problems
    ]
    good = [c for c in cases if c.name not in readings.problems]
    good, united = unite_equal(good, readings.fingerprints)
    log_warnings(united)
    log_warnings([f"{name}: {note}" for name, notes in sorted(readings.notes.items()) for note in notes])
    training = options.training(good)
    for moved, times in ((training - presumed, 1), (presumed - training, -1)):
        some = [c for c in good if c.name in moved]
        if some:
            again = _read_parallel("split again", some, moved, options, dtype, work, workers)
            readings.histogram.add(again.histogram.counts, times)
    return ReadResult(good, training, readings, bad)


def log_warnings(lines: Sequence[str]) -> None:
    """Log warnings, at most LISTED."""
    for line in lines[:LISTED]:
        log.warning("%s", line)
    if len(lines) > LISTED:
        log.warning("and %d more such lines; all are in the index", len(lines) - LISTED)


def _read_parallel(
    what: str,
    cases: Sequence[Case],
    training: Collection[str],
    options: ShardOptions,
    dtype: str,
    work: Path,
    workers: int,
) -> CaseReadings:
    """Cases go to the workers in small groups; each group returns one histogram."""
    size = max(1, min(8, len(cases) // (4 * max(1, workers))))
    groups = [cases[i : i + size] for i in range(0, len(cases), size)]
    read_one = partial(read_group, training=training, options=options, dtype=dtype, work=work)
    readings = CaseReadings(Histogram(options.modality_set))
    for part in parallel_map(what, read_one, groups, workers, weight=len):
        readings += part
    return readings


def read_group(
    cases: Sequence[Case], training: Collection[str], options: ShardOptions, dtype: str, work: Path | None
) -> CaseReadings:
    """Read every volume of the cases, and count the voxels of the training cases.

    Args:
        cases: Cases to read.
        training: Names of the training cases.
        options: Views, rounding and encoding.
        dtype: Type of the encoded slices; cases with larger values are not encoded.
        work: Staging folder for the encoded slices; None: nothing is encoded.
    """
    readings = CaseReadings(Histogram(options.modality_set))
    for case in cases:
        try:
            volumes = read_usable_case(case, options.views, options.round_values, options.assume)
            stage1 = read_stage1(volumes, options.stage1, options.assume) if options.stage1 else None
            counts = [foreground_counts(*both) for both in zip(volumes.images, volumes.foreground)]
            prints = tuple(hashlib.sha256(c.tobytes()).hexdigest()[:16] for c in counts)
            notes = (*case_notes(volumes), *equal_volumes(volumes.modalities, prints))
            if options.strict:
                refuse(notes, case.folder)
        except BrasynError as error:
            readings.problems[case.name] = str(error)
            continue
        except Exception as error:  # one unreadable case must not hide the others
            readings.problems[case.name] = f"{case.folder}: cannot be read ({type(error).__name__}: {error})"
            continue
        if notes:
            readings.notes[case.name] = notes
        stored = np.result_type(volumes.images, *([] if stage1 is None else [stage1]))
        readings.dtype = max(readings.dtype, stored.name, key=DTYPES.index)
        readings.medians[case.name] = tuple(map(median_of_counts, counts))
        readings.fingerprints[case.name] = prints
        if stage1 is not None:
            made = [foreground_counts(image, image > 0) for image in stage1]
            readings.stage1_medians[case.name] = tuple(map(median_of_counts, made))
        readings.shapes[case.name] = volumes.images.shape[1:]
        if case.name in training:
            readings.histogram.add(counts)
        if work is not None and np.can_cast(stored, dtype) and not is_staged(case.name, work):
            stage_volumes(volumes, stage1, options, dtype, work)
    return readings
