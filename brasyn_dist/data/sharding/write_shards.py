"""Sharding: BraTS folders to a shard set, in a pass and a shuffle.

    read     every case, once         --> problems (stop here, nothing is left behind), exact statistics of the training cases,
                                          encoded slices in the spool, one case at a time and worker
    shuffle  seeded order of a split  --> train-00000.tar, ...: each shard gathers its slices from the spool
    last     index.json               --> the set is complete; the spool goes

Slices hold integers as they are, so that they can be encoded before the statistics are known. Which type all of them need is
known only afterwards: int16 is presumed, and where a case needs int32 all are read and encoded again.

Cases and shards are independent of each other, so any number of workers writes the same bytes. Killed at any moment: run the
same command again; finished cases are not encoded twice, and a set without index.json is no set.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from brasyn_dist.brats import BRATS, Case
from brasyn_dist.common.process_pool import Pool, worker_pool
from brasyn_dist.data.case_folders import Problem, find_cohorts, input_hash, modified_hash
from brasyn_dist.data.format.contents import summary
from brasyn_dist.data.format.index import INDEX_NAME, ShardIndex
from brasyn_dist.data.format.metadata import CaseEntry, SetHeader
from brasyn_dist.data.format.tar_shards import ShardEntry, write_shard
from brasyn_dist.data.loading.sampler import Purpose, permutation
from brasyn_dist.data.sharding import staging
from brasyn_dist.data.sharding.options import ShardOptions
from brasyn_dist.data.sharding.patient_split import check_known
from brasyn_dist.data.sharding.scan_cases import Survey, survey
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.statistics import Statistics

__all__ = ["ShardOptions", "make_shards"]
TRAIN, VALIDATION = "train", "val"
PRESUMED = "int16"
"""Type of nearly all sets."""


def make_shards(
    cohorts: Sequence[Path],
    out: Path,
    options: ShardOptions | None = None,
    statistics: Statistics | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    say: Callable[[str], None] = print,
) -> ShardIndex:
    """Write the shard set of the cohorts' cases to `out`, or continue doing so. Returns its index.

    `statistics` are used as given; None computes them. Raises DataError listing every bad case, and leaves nothing
    behind, unless `skip_bad` leaves them out; and if `out` holds another set.
    """
    options, out = options or ShardOptions(), Path(out)
    cases, listed = find_cohorts([Path(root) for root in cohorts], options.modality_set)
    if statistics is not None and tuple(statistics.modalities) != options.modality_set.modalities:
        raise DataError(
            f"statistics of {', '.join(statistics.modalities)}, but the modality set {options.modality_set.name} has "
            f"{', '.join(options.modality_set.modalities)}; compute them from the cases, or give others"
        )
    identity = _identity(options, cases, statistics)
    if (done := _finished(out, identity, skip_bad, say)) is not None:
        return done
    if options.validation_cases is not None:
        every = [c.name for c in cases] + [c.patient for c in cases] + [p.folder.name for p in listed]
        check_known(options.validation_cases, every)
    with worker_pool(workers) as pool, staging.locked_work(out) as work:
        # Another run may have finished the set before this one had the lock.
        if (done := _finished(out, identity, skip_bad, say)) is not None:
            return done
        slicing = _slicing(options, PRESUMED)
        staging.prepare(work, _spool_identity(identity, cases, PRESUMED))
        found = survey(cases, options, pool, slicing, work)
        problems = listed + found.bad
        _stop_at(problems, skip_bad, out)
        header = _header(found, options, statistics, problems, identity)
        if header.dtype != PRESUMED:
            staging.prepare(work, _spool_identity(identity, cases, header.dtype))
        index = _write(found.cases, header, options, work, pool)
        say(summary(index))
    return ShardIndex.load(out)


def _identity(options: ShardOptions, cases: Sequence[Case], statistics: Statistics | None) -> dict[str, Any]:
    """What makes two sets the same: options and input. Paths stay out of it, so that machines agree on the bytes."""
    values = asdict(options)
    del values["modality_set"]
    if options.modality_set != BRATS:
        values["modality_set"] = options.modality_set.to_dict()
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        "statistics": statistics.hash if statistics else "computed",
        "input": input_hash(cases),
    }


def _spool_identity(identity: dict[str, Any], cases: Sequence[Case], dtype: str) -> dict[str, Any]:
    """What makes encoded slices reusable: also that no input file was written to in between."""
    names = [c.name for c in cases]
    return {**identity, "dtype": dtype, "cases": names, "modified": modified_hash(cases)}


def _slicing(options: ShardOptions, dtype: str) -> staging.SliceOptions:
    return staging.SliceOptions(
        options.views, options.minimum_foreground, options.codec, dtype, options.round_values
    )


def _finished(
    out: Path, identity: dict[str, Any], skip_bad: bool, say: Callable[[str], None]
) -> ShardIndex | None:
    """The index of `out` if the set is complete. Raises DataError if it was made otherwise, or shards are gone."""
    if not (out / INDEX_NAME).exists():
        return None
    index = ShardIndex.load(out)
    made = index.header.options
    differing = [key for key in {**identity, "modality_set": None} if made.get(key) != identity.get(key)]
    if differing:
        details = "; ".join(
            f"{key}: there {made.get(key)!r}, here {identity.get(key)!r}" for key in differing
        )
        raise DataError(
            f"{out} holds a shard set made otherwise ({details}). Choose another --out, or remove that folder"
        )
    for shard in index.shards:
        path = out / shard.name
        if not path.exists() or path.stat().st_size != shard.size:
            raise DataError(
                f"{path}: missing or not as long as {INDEX_NAME} says; remove {out} and run again"
            )
    if index.header.skipped and not skip_bad:
        raise DataError(
            f"{out} was made with --skip-bad, without {len(index.header.skipped)} bad cases. Give --skip-bad to accept "
            "it, or mend the cases and choose another --out"
        )
    staging.clear(out)
    say(f"{out} is complete already, nothing to do\n{summary(index)}")
    return index


def _stop_at(problems: Sequence[Problem], skip_bad: bool, out: Path) -> None:
    if problems and not skip_bad:
        staging.discard(out)
        reasons = [line for problem in problems for line in str(problem).splitlines()]
        count = f"{len(problems)} bad case{'s' if len(problems) > 1 else ''}"
        raise DataError(
            f"{count}, nothing was written:\n  "
            + "\n  ".join(reasons)
            + "\nMend, or leave out with --skip-bad"
        )


def _header(
    found: Survey,
    options: ShardOptions,
    statistics: Statistics | None,
    problems: Sequence[Problem],
    identity: dict[str, Any],
) -> SetHeader:
    if not found.training:
        raise DataError("no training case is left; give more cases, or hold fewer out")
    return SetHeader(
        codec=options.codec,
        dtype=found.findings.dtype,
        seed=options.seed,
        views=options.views,
        shard_counts={},
        cases=tuple(_entry(case, found) for case in found.cases),
        statistics=(
            statistics or found.findings.histogram.statistics(found.training, options.headroom)
        ).to_dict(),
        skipped=[p.to_dict() for p in problems],
        options=identity,
        modality_set=options.modality_set,
    )


def _entry(case: Case, found: Survey) -> CaseEntry:
    split = TRAIN if case.name in found.training else VALIDATION
    medians = found.findings.medians[case.name]
    return CaseEntry(case.name, case.cohort, split, case.patient, "seg" in case.files, medians)


def _write(
    cases: Sequence[Case], header: SetHeader, options: ShardOptions, work: Path, pool: Pool
) -> ShardIndex:
    """What is not yet encoded, the shuffle, and the index."""
    encode = partial(staging.spool_case, options=_slicing(options, header.dtype), work=work)
    missing = [case for case in cases if not staging.is_spooled(case.name, work)]
    for _ in pool.run("encode", encode, missing) if missing else ():
        pass
    plans = plan_shards(staging.spooled(work, [case.name for case in cases]), header, options)
    header = replace(header, shard_counts=dict(Counter(plan.split for plan in plans)))
    write = partial(gather_shard, header=header, work=work)
    entries = list(pool.run("write shards", write, plans, weight=lambda plan: len(plan.samples)))
    index = ShardIndex(header, tuple(sorted(entries, key=lambda entry: entry.name)))
    index.save(work.parent)
    staging.clear(work.parent)
    return index


@dataclass(frozen=True)
class ShardPlan:
    """Which slices a shard is to hold, in order."""

    split: str
    number: int
    samples: list[staging.SpooledSample]


def plan_shards(
    samples: Sequence[Sequence[staging.SpooledSample]], header: SetHeader, options: ShardOptions
) -> list[ShardPlan]:
    """Every split's slices in a seeded order, cut into shards. Raises DataError if there is nothing to train on."""
    plans: list[ShardPlan] = []
    size = options.samples_per_shard
    for number, split in enumerate((TRAIN, VALIDATION)):
        flat = [s for case, of_case in zip(header.cases, samples) if case.split == split for s in of_case]
        if not flat and split == TRAIN:
            raise DataError(
                f"no training slice has {options.minimum_foreground} foreground pixels in every modality; "
                "are these brains? A smaller --minimum-foreground takes them all the same"
            )
        mixed = [flat[i] for i in permutation(options.seed, Purpose.WRITING, number, len(flat))]
        plans += [ShardPlan(split, i // size, mixed[i : i + size]) for i in range(0, len(mixed), size)]
    return plans


def gather_shard(plan: ShardPlan, header: SetHeader, work: Path) -> ShardEntry:
    return write_shard(work.parent, header, plan.split, plan.number, staging.payloads(plan.samples, work))
