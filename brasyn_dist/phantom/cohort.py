"""Cohorts of phantom cases: which there are, and writing those that are not there yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from brasyn_dist.brats import VOLUME_SHAPE
from brasyn_dist.common.process_pool import worker_pool
from brasyn_dist.phantom.cases import Kind, write_case


@dataclass(frozen=True)
class PlannedCase:
    """One case to be written."""

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
    """Write the cases that are not there. Any number of workers writes the same files."""
    with worker_pool(min(workers, len(cases))) as pool:
        for _ in pool.run("phantom cases", partial(write_planned, shape=tuple(shape)), cases):
            pass


def write_planned(case: PlannedCase, shape: Sequence[int]) -> None:
    """Write a case, unless it is there. The segmentation is written last: a case that has it is whole."""
    if not (case.cohort / case.name / f"{case.name}-seg.nii.gz").exists():
        write_case(case.cohort, case.name, case.seed, case.kind, shape)
