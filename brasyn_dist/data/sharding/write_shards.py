"""Sharding: cohort folders to a shard set, in two passes.

    read     every case, once         --> problems (nothing is written), statistics of the training cases,
                                          encoded slices in the staging folder
    write    seeded order of a split  --> train-00000.tar, ...: samples from the staging folder
    last     index.json               --> the set is complete; the staging folder is removed

Samples hold the stored integers, so they can be encoded before the statistics are known. The common type of
all samples is known only after the first pass: int16 is presumed, and if a case needs int32, all cases are
read and encoded again.

Chunks are in shards of their own after those of the slices: a run on slices does not fetch them. The chunks
of a case are in one shard, in the order of the grid, because a patch needs several of them.

Cases and shards are independent of each other, so any number of workers writes the same bytes. After a kill
at any moment the same command continues: finished cases are not encoded again, and a folder without
index.json is not a set.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from brasyn_dist.brats import BRATS, Case
from brasyn_dist.common.files import canonical_json
from brasyn_dist.common.process_pool import parallel_map
from brasyn_dist.data.case_folders import (
    BadCase,
    describe_bad_cases,
    find_cohorts,
    input_hash,
    modified_hash,
)
from brasyn_dist.data.format.contents import contents_summary
from brasyn_dist.data.format.index import INDEX_NAME, ShardIndex
from brasyn_dist.data.format.metadata import CHUNK, CaseEntry, SetHeader
from brasyn_dist.data.format.tar_shards import ShardEntry, write_shard
from brasyn_dist.data.label_editions import recorded, with_label_editions
from brasyn_dist.data.loading.sampler import Purpose, permutation
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.patients import possible_time_points, with_patients
from brasyn_dist.data.sharding import staging
from brasyn_dist.data.sharding.options import ADDED, ShardOptions
from brasyn_dist.data.sharding.patient_split import check_known
from brasyn_dist.data.sharding.read_cases import ReadResult, read_cases
from brasyn_dist.data.sharding.stage1_volumes import stage1_files
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import SEGMENTATION
from brasyn_dist.preprocessing.statistics import Statistics

__all__ = ["ShardOptions", "make_shards"]
log = logging.getLogger(__name__)
TRAIN, VALIDATION = "train", "val"
PRESUMED = "int16"
"""Type of nearly all sets."""
EXCLUDED = "excluded: "
"""Start of the reason of cases that the user left out."""


def make_shards(
    cohorts: Sequence[Path],
    out: Path,
    options: ShardOptions | None = None,
    statistics: Statistics | None = None,
    workers: int = 1,
    skip_bad: bool = False,
) -> ShardIndex:
    """Write a shard set, or continue an interrupted run.

    Args:
        cohorts: Cohort folders; each contains case folders, and its name is the name of the cohort.
        out: Folder of the set.
        options: Content of the set.
        statistics: Intensity statistics to store; None: they are computed from the training cases.
        workers: Processes.
        skip_bad: Leave bad cases out instead of stopping.

    Returns:
        The index of the set.

    Raises:
        DataError: There are bad cases (all are listed, and nothing is written), `out` has another set, or the
            options do not fit the cases.
    """
    options, out = options or ShardOptions(), Path(out)
    if options.stage1 is not None and not options.stage1.is_dir():
        raise DataError(
            f"--stage1 {options.stage1}: no such folder; give DIR/predictions of `brasyn cross-fit`"
        )
    cases, listed = find_cohorts([Path(root) for root in cohorts], options.modality_set)
    if statistics is not None and tuple(statistics.modalities) != options.modality_set.modalities:
        raise DataError(
            f"statistics of {', '.join(statistics.modalities)}, but the modality set "
            f"{options.modality_set.name} has "
            f"{', '.join(options.modality_set.modalities)}; compute them from the cases, or give others"
        )
    cases, excluded = _exclude(cases, listed, options)
    listed = [case for case in listed if case.folder.name not in dict(options.exclude)]
    cases = with_patients(cases, dict(options.patients))
    identity = _identity(options, cases, statistics)
    if (done := _finished(out, identity, skip_bad)) is not None:
        return done
    if options.validation_cases is not None:
        every = [c.name for c in cases] + [c.patient for c in cases]
        every += [b.folder.name for b in (*listed, *excluded)]
        check_known(options.validation_cases, every)
    if warning := possible_time_points(cases):
        log.warning("%s", warning)
    cases, editions = with_label_editions(cases, options.label_edition, workers)
    with staging.locked_staging(out) as work:
        # Another run may have finished the set before this one had the lock.
        if (done := _finished(out, identity, skip_bad)) is not None:
            return done
        inputs = [*cases, *(stage1_files(c, options.stage1) for c in cases if options.stage1)]
        staging.prepare_staging(work, _staging_identity(identity, inputs, PRESUMED))
        result = read_cases(cases, options, PRESUMED, work, workers)
        bad = listed + result.bad
        if bad and not skip_bad:
            staging.remove_output(out)
            raise DataError(describe_bad_cases(bad, "nothing was written"))
        facts: dict[str, Any] = {"label_editions": recorded(editions), "notes": result.readings.notes}
        record = {**identity, **{key: value for key, value in facts.items() if value}}
        header = _header(result, options, statistics, [*excluded, *bad], record)
        if header.dtype != PRESUMED:
            staging.prepare_staging(work, _staging_identity(identity, inputs, header.dtype))
        log.info(contents_summary(_write(result.cases, header, options, work, workers)))
    return open_shard_set(out)


def _exclude(
    cases: Sequence[Case], bad: Sequence[BadCase], options: ShardOptions
) -> tuple[list[Case], list[BadCase]]:
    """The cases without those that the user leaves out, and these."""
    reasons = dict(options.exclude)
    excluded = [
        BadCase(c.folder, c.cohort, f"{c.folder}: {EXCLUDED}{reasons[c.name]}")
        for c in cases
        if c.name in reasons
    ]
    if reasons:
        log.info("%d cases excluded; the list has %d names", len(excluded), len(reasons))
    if unknown := sorted(set(reasons) - {c.name for c in cases} - {b.folder.name for b in bad}):
        log.warning(
            "--exclude: %d of its names are no case and exclude nothing, such as %r; names are those of the "
            "case folders",
            len(unknown),
            unknown[0],
        )
    return [c for c in cases if c.name not in reasons], excluded


def _identity(options: ShardOptions, cases: Sequence[Case], statistics: Statistics | None) -> dict[str, Any]:
    """Options and input of a set, without paths, so that all machines write the same bytes."""
    values = asdict(options)
    del values["modality_set"]
    values = {k: v for k, v in values.items() if k not in ADDED or v != getattr(ShardOptions(), k)}
    if options.modality_set != BRATS:
        values["modality_set"] = options.modality_set.to_dict()
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    if options.exclude:
        values["exclude"] = dict(options.exclude)
    if options.stage1 is not None:
        values["stage1"] = input_hash(stage1_files(case, options.stage1) for case in cases)
    if options.patients:  # a file may name patients that are not in the set
        values["patients"] = hashlib.sha256(canonical_json(values["patients"])).hexdigest()
    return {
        **values,
        "statistics": statistics.hash if statistics else "computed",
        "input": input_hash(cases),
    }


def _staging_identity(identity: dict[str, Any], cases: Sequence[Case], dtype: str) -> dict[str, Any]:
    """Encoded samples are reused only if no input file was modified since."""
    names = [c.name for c in cases]
    return {**identity, "dtype": dtype, "cases": names, "modified": modified_hash(cases)}


def _finished(out: Path, identity: dict[str, Any], skip_bad: bool) -> ShardIndex | None:
    """The index of `out` if the set is complete. Raises DataError if it has another identity."""
    if not (out / INDEX_NAME).exists():
        return None
    index = open_shard_set(out)
    made = index.header.options
    keys = [*identity, *(key for key in ("modality_set", *ADDED) if key not in identity)]
    differing = [key for key in keys if made.get(key) != identity.get(key)]
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
    bad = [entry for entry in index.header.skipped if EXCLUDED not in entry["reason"]]
    if bad and not skip_bad:
        raise DataError(
            f"{out} was made with --skip-bad, without {len(bad)} bad cases. Give "
            "--skip-bad to accept "
            "it, or repair the cases and choose another --out"
        )
    staging.remove_staging(out)
    log.info("%s is complete already, nothing to do\n%s", out, contents_summary(index))
    return index


def _header(
    result: ReadResult,
    options: ShardOptions,
    statistics: Statistics | None,
    bad: Sequence[BadCase],
    identity: dict[str, Any],
) -> SetHeader:
    if not result.training:
        reasons = "".join(f"\n  left out: {line}" for case in bad for line in case.reason.splitlines())
        raise DataError(f"no training case is left; give more cases, or hold fewer out{reasons}")
    readings = result.readings
    if len(result.training) == len(result.cases) and (
        options.validation_cases or options.validation_fraction
    ):
        log.warning("no case is held out: every cohort has one patient; training will not be validated")
    statistics = statistics or readings.histogram.statistics(
        result.training, options.headroom, options.clip_percentile
    )
    Statistics.from_dict(statistics.to_dict(), "the training cases", options.modality_set)
    return SetHeader(
        codec=options.codec,
        dtype=readings.dtype,
        seed=options.seed,
        views=options.views,
        shard_counts={},
        cases=tuple(
            CaseEntry(
                name=case.name,
                cohort=case.cohort,
                split=TRAIN if case.name in result.training else VALIDATION,
                patient=case.patient,
                segmentation=SEGMENTATION in case.files,
                medians=readings.medians[case.name],
                shape=readings.shapes[case.name] if options.chunks else None,
                stage1_medians=readings.stage1_medians.get(case.name),
            )
            for case in result.cases
        ),
        statistics=statistics.to_dict(),
        skipped=[case.to_dict() for case in bad],
        options=identity,
        modality_set=options.modality_set,
        chunk=options.chunks,
        stage1=options.stage1 is not None,
    )


def _write(
    cases: Sequence[Case], header: SetHeader, options: ShardOptions, work: Path, workers: int
) -> ShardIndex:
    """Encode the cases that are not encoded yet, and write the shards and the index."""
    missing = [case for case in cases if not staging.is_staged(case.name, work)]
    if missing:
        encode = partial(staging.stage_case, options=options, dtype=header.dtype, work=work)
        for _ in parallel_map("encode", encode, missing, workers):
            pass
    plans = plan_shards(staging.staged_samples(work, [case.name for case in cases]), header, options)
    header = replace(header, shard_counts=dict(Counter(plan.split for plan in plans)))
    write = partial(write_planned_shard, header=header, work=work)
    entries = parallel_map("write shards", write, plans, workers, weight=lambda plan: len(plan.samples))
    index = ShardIndex(header, tuple(sorted(entries, key=lambda entry: entry.name)))
    index.save(work.parent)
    staging.remove_staging(work.parent)
    return index


@dataclass(frozen=True)
class ShardPlan:
    """Samples of one shard, in order."""

    split: str
    number: int
    samples: list[staging.StagedSample]


def plan_shards(
    samples: Sequence[Sequence[staging.StagedSample]], header: SetHeader, options: ShardOptions
) -> list[ShardPlan]:
    """Samples of every split in a seeded order, divided into shards. Raises DataError if there are no slices.

    Args:
        samples: Slices and chunks of each case.
        header: Its cases have a split.
        options: Seed and size of the shards.
    """
    plans: list[ShardPlan] = []
    for number, split in enumerate((TRAIN, VALIDATION)):
        of_split = [of_case for case, of_case in zip(header.cases, samples) if case.split == split]
        slices = [s for of_case in of_split for s in of_case if s.view != CHUNK]
        if not slices and split == TRAIN and options.views:
            raise DataError(
                f"no training slice has {options.minimum_foreground} foreground pixels in every modality; "
                "check that the volumes are brains, or lower --minimum-foreground"
            )
        mixed = permutation(options.seed, Purpose.WRITING, number, len(slices))
        shards = _divided([[slices[i]] for i in mixed], options.samples_per_shard)
        chunks = [[s for s in of_case if s.view == CHUNK] for of_case in of_split]
        mixed = permutation(options.seed, Purpose.WRITING, 2 + number, len(chunks))
        shards += _divided([chunks[i] for i in mixed], options.samples_per_shard)
        plans += [ShardPlan(split, i, of_shard) for i, of_shard in enumerate(shards)]
    return plans


def _divided(groups: Sequence[list[staging.StagedSample]], size: int) -> list[list[staging.StagedSample]]:
    """Consecutive groups together, up to `size` samples or one group."""
    parts: list[list[staging.StagedSample]] = []
    for group in groups:
        if parts and len(parts[-1]) + len(group) <= size:
            parts[-1] += group
        elif group:
            parts.append([*group])
    return parts


def write_planned_shard(plan: ShardPlan, header: SetHeader, work: Path) -> ShardEntry:
    """Write one shard beside the staging folder `work`."""
    return write_shard(work.parent, header, plan.split, plan.number, staging.read_staged(plan.samples, work))
