"""Sharding: BraTS folders to a shard set, in two passes and a shuffle.

    pass 1   read every case          --> problems (stop here, nothing written), exact statistics of the training cases
    pass 2   slice and encode a case  --> <out>/.work/<number>.blob + .json, one case at a time and worker
    shuffle  seeded order of a split  --> train-00000.tar, ...: each shard gathers its slices from the blobs
    last     index.json               --> the set is complete; .work goes

Cases and shards are independent of each other, so any number of workers writes the same bytes. Killed at any moment: run the
same command again; finished cases are not encoded twice, and a set without index.json is no set.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from brasyn_dist.brats import VIEWS, Case
from brasyn_dist.data import cohorts as cohorts_module
from brasyn_dist.data.codec import DEFAULT_CODEC, encode_slice
from brasyn_dist.data.cohorts import TRAIN, VALIDATION, Findings, Problem
from brasyn_dist.data.index import INDEX_NAME, ShardIndex
from brasyn_dist.data.plan import Purpose, permutation
from brasyn_dist.data.shards import (
    CaseEntry,
    EncodedSample,
    SetHeader,
    ShardEntry,
    is_shard_name,
    write_shard,
)
from brasyn_dist.data.slicing import MINIMUM_FOREGROUND, extract_slices, kept_slices
from brasyn_dist.data.statistics import Statistics
from brasyn_dist.errors import DataError
from brasyn_dist.files import atomic_path, canonical_json, write_json

WORK = ".work"
T = TypeVar("T")


@dataclass(frozen=True)
class ShardOptions:
    """How a shard set is made. Everything here is part of the set's identity."""

    views: tuple[str, ...] = VIEWS
    seed: int = 0
    validation_fraction: float = 0.1
    validation_cases: tuple[str, ...] | None = None
    """Held-out cases or patients by name; overrides the fraction."""
    minimum_foreground: int = MINIMUM_FOREGROUND
    samples_per_shard: int = 1000
    codec: str = DEFAULT_CODEC
    round_values: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown or not self.views:
            raise DataError(f"views {unknown or 'none'}: choose from {', '.join(VIEWS)}")
        if self.samples_per_shard < 1:
            raise DataError("samples per shard: must be at least 1")


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

    `statistics` are used as given; None computes them. Raises DataError listing every bad case, before anything is
    written, unless `skip_bad` leaves them out; and if `out` holds another set.
    """
    options, out = options or ShardOptions(), Path(out)
    cases, listed = cohorts_module.list_cases(cohorts)
    identity = _identity(options, cases, statistics, skip_bad)
    if (done := _finished(out, identity)) is not None:
        say(f"{out} is complete already, nothing to do")
        return done
    held_out = _held_out(cases, options)
    with _pool(workers) as pool:
        findings = _examine(cases, held_out, options, workers, pool)
        problems = listed + [
            Problem(c.name, c.cohort, findings.problems[c.name]) for c in cases if c.name in findings.problems
        ]
        _stop_at(problems, skip_bad)
        good = [c for c in cases if c.name not in findings.problems]
        header = _header(good, held_out, options, findings, statistics, problems, identity)
        work = _open_work(out, identity)
        samples = _encode(good, header, options, work, pool)
        entries = _gather(samples, header, options, work, out, pool)
    header = replace(header, shard_counts=_counts(entries))
    index = ShardIndex(header, tuple(entries))
    index.save(out)
    shutil.rmtree(work)
    say(summary(index))
    return ShardIndex.load(out)


def _identity(
    options: ShardOptions, cases: Sequence[Case], statistics: Statistics | None, skip_bad: bool
) -> dict[str, Any]:
    """What makes two sets the same: options and input. Paths stay out of it, so that machines agree on the bytes."""
    values = asdict(options)
    return {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()},
        "statistics": statistics.hash if statistics else "computed",
        "skip_bad": skip_bad,
        "input": cohorts_module.input_hash(cases),
    }


def _finished(out: Path, identity: dict[str, Any]) -> ShardIndex | None:
    if not (out / INDEX_NAME).exists():
        return None
    index = ShardIndex.load(out)
    differing = [k for k, v in identity.items() if index.header.options.get(k) != v]
    if differing:
        key = differing[0]
        raise DataError(
            f"{out} holds a shard set made otherwise: {', '.join(differing)} differ "
            f"({key}: there {index.header.options.get(key)!r}, here {identity[key]!r}). Choose another --out, or remove it"
        )
    return index


def _held_out(cases: Sequence[Case], options: ShardOptions) -> set[str]:
    if options.validation_cases is not None:
        return cohorts_module.held_out_by_list(cases, set(options.validation_cases))
    return cohorts_module.held_out_by_fraction(cases, options.validation_fraction, options.seed)


def _examine(
    cases: Sequence[Case], held_out: set[str], options: ShardOptions, workers: int, pool: "Pool"
) -> Findings:
    """Pass 1. Cases go to the workers in small lots, each of which sends back one histogram."""
    training = {c.name for c in cases} - held_out
    lot = max(1, min(8, len(cases) // (4 * workers)))
    lots = [cases[i : i + lot] for i in range(0, len(cases), lot)]
    work = partial(cohorts_module.examine, training=training, round_values=options.round_values)
    findings = Findings()
    for found in pool.run("examine", work, lots, weight=len):
        findings += found
    return findings


def _stop_at(problems: Sequence[Problem], skip_bad: bool) -> None:
    if problems and not skip_bad:
        raise DataError(
            f"{len(problems)} bad cases, nothing was written:\n  "
            + "\n  ".join(map(str, problems))
            + "\nMend them, or leave them out with --skip-bad"
        )


def _header(
    cases: Sequence[Case],
    held_out: set[str],
    options: ShardOptions,
    findings: Findings,
    statistics: Statistics | None,
    problems: Sequence[Problem],
    identity: dict[str, Any],
) -> SetHeader:
    training = [c.name for c in cases if c.name not in held_out]
    if not training:
        raise DataError("no training case is left; give more cases or a smaller validation fraction")
    fits = np.iinfo(np.int16).min <= findings.low and findings.high <= np.iinfo(np.int16).max
    return SetHeader(
        codec=options.codec,
        dtype="int16" if fits else "int32",
        seed=options.seed,
        views=options.views,
        shard_counts={},
        cases=tuple(
            CaseEntry(
                c.name, c.cohort, VALIDATION if c.name in held_out else TRAIN, c.patient, "seg" in c.files
            )
            for c in cases
        ),
        statistics=(statistics or findings.histogram.statistics(training)).to_dict(),
        # Reasons begin with the file's path; the set must not depend on where its input lay.
        skipped=[
            {
                "case": p.case,
                "cohort": p.cohort,
                "reason": p.reason.replace(str(Path(p.reason.split(":")[0]).parent) + "/", ""),
            }
            for p in problems
        ],
        options=identity,
    )


def _open_work(out: Path, identity: dict[str, Any]) -> Path:
    """The working folder, emptied unless it is of the same making; shards of an unfinished set go."""
    work = out / WORK
    note = work / "identity.json"
    work.mkdir(parents=True, exist_ok=True)
    if not note.exists() or canonical_json(json.loads(note.read_text())) != canonical_json(identity):
        shutil.rmtree(work)
        work.mkdir()
        write_json(note, identity)
    for path in out.iterdir():
        if is_shard_name(path.name) or path.name.startswith(".tmp-"):
            path.unlink()
    return work


@dataclass(frozen=True)
class SpooledSample:
    """An encoded slice in the working folder: bytes `offset` .. `offset` + `size` of the case's blob."""

    case: int
    view: str
    index: int
    tumour_pixels: int
    offset: int
    size: int


def _encode(
    cases: Sequence[Case], header: SetHeader, options: ShardOptions, work: Path, pool: "Pool"
) -> list[list[SpooledSample]]:
    """Pass 2. Returns the spooled slices of each case."""
    encode = partial(encode_case, options=options, dtype=header.dtype, work=work)
    for _ in pool.run("encode", encode, list(enumerate(cases)), weight=lambda _: 1):
        pass
    return [spooled(work, number) for number in range(len(cases))]


def encode_case(numbered: tuple[int, Case], options: ShardOptions, dtype: str, work: Path) -> None:
    """Encode the kept slices of one case into `<number>.blob`, then list them in `<number>.json`; once."""
    number, case = numbered
    listing = work / f"{number:06d}.json"
    if listing.exists():
        return
    volumes = cohorts_module.checked_case(case, options.round_values)
    planes = volumes.images.astype(dtype)
    if volumes.labels is not None:
        planes = np.concatenate([planes, volumes.labels[None].astype(dtype)])
    rows: list[tuple[str, int, int, int, int]] = []
    with atomic_path(work / f"{number:06d}.blob") as temporary, temporary.open("wb") as blob:
        for view in options.views:
            slices = extract_slices(planes, view)
            for index in kept_slices(volumes.images, view, options.minimum_foreground).tolist():
                data = encode_slice(np.ascontiguousarray(slices[index]), options.codec)
                tumour = 0 if volumes.labels is None else int(np.count_nonzero(slices[index][4]))
                rows.append((view, index, tumour, blob.tell(), len(data)))
                blob.write(data)
        blob.flush()
    write_json(listing, rows)


def spooled(work: Path, number: int) -> list[SpooledSample]:
    return [SpooledSample(number, *row) for row in json.loads((work / f"{number:06d}.json").read_text())]


def _gather(
    samples: Sequence[Sequence[SpooledSample]],
    header: SetHeader,
    options: ShardOptions,
    work: Path,
    out: Path,
    pool: "Pool",
) -> list[ShardEntry]:
    """The shuffle: every split's slices in a seeded order, cut into shards."""
    plans: list[tuple[str, int, list[SpooledSample]]] = []
    for number, split in enumerate((TRAIN, VALIDATION)):
        flat = [s for case, spool in zip(header.cases, samples) if case.split == split for s in spool]
        order = permutation(options.seed, Purpose.WRITING, number, len(flat))
        mixed = [flat[i] for i in order]
        size = options.samples_per_shard
        plans += [(split, i // size, mixed[i : i + size]) for i in range(0, len(mixed), size)]
    if not any(split == TRAIN for split, _, _ in plans):
        raise DataError(
            f"no training slice has {options.minimum_foreground} foreground pixels in every modality; are these brains?"
        )
    counts: dict[str, int] = {}
    for split, _, _ in plans:
        counts[split] = counts.get(split, 0) + 1
    write = partial(gather_shard, header=replace(header, shard_counts=counts), work=work, out=out)
    entries = list(pool.run("write shards", write, plans, weight=lambda plan: len(plan[2])))
    return sorted(entries, key=lambda e: e.name)


def gather_shard(
    plan: tuple[str, int, list[SpooledSample]], header: SetHeader, work: Path, out: Path
) -> ShardEntry:
    split, number, samples = plan
    return write_shard(out, header, split, number, _payloads(samples, work))


def _payloads(samples: Iterable[SpooledSample], work: Path) -> Iterator[EncodedSample]:
    for s in samples:
        with (work / f"{s.case:06d}.blob").open("rb") as blob:
            blob.seek(s.offset)
            yield EncodedSample(s.case, s.view, s.index, s.tumour_pixels, blob.read(s.size))


def _counts(entries: Sequence[ShardEntry]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in sorted(entries, key=lambda e: (e.split != TRAIN, e.name)):
        counts[entry.split] = counts.get(entry.split, 0) + 1
    return counts


class Pool:
    """Worker processes (or, with one, this process) that run independent pieces of work, with progress."""

    def __init__(self, executor: ProcessPoolExecutor | None) -> None:
        self._executor = executor

    def run(
        self, what: str, work: Callable[[Any], T], items: Sequence[Any], weight: Callable[[Any], int]
    ) -> Iterator[T]:
        """Results as they come, in any order; a bar on a terminal, elsewhere a line now and then."""
        from tqdm import tqdm

        total = sum(map(weight, items))
        with tqdm(total=total, desc=what, disable=None) as bar:
            done, said = 0, 0
            for item, result in self._results(work, items):
                done += weight(item)
                bar.update(weight(item))
                if bar.disable and (done == total or done - said >= total / 4):
                    print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)
                    said = done
                yield result

    def _results(self, work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[tuple[Any, T]]:
        if self._executor is None:
            for item in items:
                yield item, work(item)
            return
        futures = {self._executor.submit(work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def _pool(workers: int) -> Iterator[Pool]:
    if workers <= 1:
        yield Pool(None)
        return
    # `spawn`: a forked child would inherit the threads and locks of whoever called us.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        try:
            yield Pool(executor)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def summary(index: ShardIndex) -> str:
    """Table of cases, slices by view, and bytes, for each cohort and split; then the cases that were left out."""
    header, columns = index.header, index.columns
    groups = sorted({(c.cohort, c.split) for c in header.cases})
    group_of_case = np.array([groups.index((c.cohort, c.split)) for c in header.cases])
    group = group_of_case[columns["case"]]
    head = (
        f"{'cohort':<24}{'split':<7}{'cases':>7}" + "".join(f"{v:>10}" for v in header.views) + f"{'MB':>10}"
    )
    lines = [head]
    for number, (cohort, split) in enumerate(groups):
        chosen = group == number
        counts = [int(np.count_nonzero(chosen & (columns["view"] == VIEWS.index(v)))) for v in header.views]
        lines.append(
            f"{cohort:<24}{split:<7}{np.count_nonzero(group_of_case == number):>7}"
            + "".join(f"{n:>10}" for n in counts)
            + f"{columns['size'][chosen].sum() / 1e6:>10.1f}"
        )
    lines.append(f"{len(index)} slices in {len(index.shards)} shards, {header.codec}, {header.dtype}")
    lines += [f"left out: {s['cohort']}/{s['case']}: {s['reason']}" for s in header.skipped]
    return "\n".join(lines)
