"""Pass 1 of sharding: read every case, in parallel; sort out the bad ones; count the voxels of those that are trained on.

cases --examine, in lots--> Findings + Findings + ... --> good cases, training cases, exact histogram, problems
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from brasyn_dist.brats import Case
from brasyn_dist.data.cohorts import Findings, Problem, examine
from brasyn_dist.data.shard_options import ShardOptions
from brasyn_dist.data.workers import Pool


@dataclass(frozen=True)
class Survey:
    """What pass 1 found."""

    cases: list[Case]
    """Those that can be used."""
    training: set[str]
    """Names of those that are trained on; the statistics are theirs."""
    findings: Findings
    bad: list[Problem]


def survey(cases: Sequence[Case], options: ShardOptions, pool: Pool) -> Survey:
    """The result is as if bad cases had never been there: the split is drawn among the good ones."""
    presumed = options.training(cases)
    findings = _read(cases, presumed, options, pool)
    bad = [
        Problem(c.folder, c.cohort, findings.problems[c.name]) for c in cases if c.name in findings.problems
    ]
    good = [c for c in cases if c.name not in findings.problems]
    training = options.training(good)
    joined = [c for c in good if c.name in training - presumed]
    left = [c for c in good if c.name in presumed - training]
    for moved, times in ((joined, 1), (left, -1)):
        if moved:
            again = _read(moved, {c.name for c in moved}, options, pool, "split again")
            findings.histogram.add_histogram(again.histogram, times)
    return Survey(good, training, findings, bad)


def _read(
    cases: Sequence[Case], training: set[str], options: ShardOptions, pool: Pool, what: str = "examine"
) -> Findings:
    """Cases go to the workers in small lots, each of which sends back one histogram."""
    lot = max(1, min(8, len(cases) // (4 * pool.workers)))
    lots = [cases[i : i + lot] for i in range(0, len(cases), lot)]
    work = partial(examine, training=training, views=options.views, round_values=options.round_values)
    findings = Findings()
    for found in pool.run(what, work, lots, weight=len):
        findings += found
    return findings
