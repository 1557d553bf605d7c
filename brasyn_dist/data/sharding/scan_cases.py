"""Reading every case, in parallel: sort out the bad ones, count the voxels of those that are trained on, encode slices.

cases --examine, in lots--> Findings + Findings + ... --> good cases, training cases, exact histogram, problems
                       \\--> slices in the spool
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from brasyn_dist.brats import Case
from brasyn_dist.common.process_pool import Pool
from brasyn_dist.data.case_folders import Findings, Problem, examine
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.data.sharding.options import ShardOptions
from brasyn_dist.data.sharding.staging import SliceOptions, spool_if_it_fits
from brasyn_dist.preprocessing.statistics import Histogram


@dataclass(frozen=True)
class Survey:
    """What reading all cases showed."""

    cases: list[Case]
    """Those that can be used."""
    training: set[str]
    """Names of those that are trained on; the statistics are theirs."""
    findings: Findings
    bad: list[Problem]


def survey(
    cases: Sequence[Case], options: ShardOptions, pool: Pool, slicing: SliceOptions, work: Path
) -> Survey:
    """The result is as if bad cases had never been there: the split is drawn among the good ones.

    Slices of good cases are in the spool `work` thereafter, as far as their values fit the type of `slicing`.
    """
    presumed = options.training(cases)
    spool = partial(spool_if_it_fits, options=slicing, work=work)
    findings = _read(cases, presumed, options, pool, "read and encode", spool)
    bad = [
        Problem(c.folder, c.cohort, findings.problems[c.name]) for c in cases if c.name in findings.problems
    ]
    good = [c for c in cases if c.name not in findings.problems]
    training = options.training(good)
    joined = [c for c in good if c.name in training - presumed]
    left = [c for c in good if c.name in presumed - training]
    for moved, times in ((joined, 1), (left, -1)):
        if moved:
            again = _read(moved, {c.name for c in moved}, options, pool, "split again", _nothing)
            findings.histogram.add(again.histogram.counts, times)
    return Survey(good, training, findings, bad)


def _nothing(volumes: CaseVolumes) -> None:
    """A case that was used before."""


def _read(
    cases: Sequence[Case],
    training: set[str],
    options: ShardOptions,
    pool: Pool,
    what: str,
    use: Callable[[CaseVolumes], object],
) -> Findings:
    """Cases go to the workers in small lots, each of which sends back one histogram."""
    lot = max(1, min(8, len(cases) // (4 * pool.workers)))
    lots = [cases[i : i + lot] for i in range(0, len(cases), lot)]
    work = partial(
        examine, training=training, views=options.views, round_values=options.round_values, use=use
    )
    findings = Findings(Histogram(options.modality_set))
    for found in pool.run(what, work, lots, weight=len):
        findings += found
    return findings
