"""The spool: encoded slices of each case on disk, between reading the cases and filling the shards.

    <out>/.work/identity.json     what the spool was made of; another making empties it
               /lock              held by the run that uses it
               /000012.blob       encoded slices of case 12, one after the other
               /000012.json       where each begins; written after the blob, hence: the case is done

Shards take their slices from all cases, so all must be encoded before the first shard is full. Memory stays bounded, and a
killed run goes on where it was.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brasyn_dist.brats import Case
from brasyn_dist.data.codec import encode_slice
from brasyn_dist.data.cohorts import read_checked
from brasyn_dist.data.shards import EncodedSample, is_shard_name
from brasyn_dist.data.slicing import extract_slices, kept_slices
from brasyn_dist.errors import DataError
from brasyn_dist.files import atomic_path, canonical_json, write_json

WORK = ".work"
_IDENTITY = "identity.json"


@dataclass(frozen=True)
class SliceOptions:
    """How a case becomes encoded slices."""

    views: tuple[str, ...]
    minimum_foreground: int
    codec: str
    dtype: str
    round_values: bool


@dataclass(frozen=True)
class SpooledSample:
    """An encoded slice in the spool: bytes `offset` .. `offset` + `size` of the blob of case number `case`."""

    case: int
    view: str
    index: int
    tumour_pixels: int
    offset: int
    size: int


@contextmanager
def locked_work(out: Path) -> Iterator[Path]:
    """The working folder of `out`, made if need be, for this process alone. Raises DataError if another run has it."""
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(descriptor, out)
        yield work
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    """Held until the descriptor is closed, by the kernel if need be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{out}: another run is writing here; wait for it, or choose another --out") from None
    except OSError as error:  # a file system without locks
        print(f"warning: {out} cannot be locked ({error.strerror}); make sure that no other run writes there")


def prepare(work: Path, identity: dict[str, Any]) -> None:
    """Empty the spool unless it is of the same making; shards of an unfinished set go in any case.

    Raises DataError if there are shards of which no spool tells that they are unfinished: somebody's data.
    """
    out, note = work.parent, work / _IDENTITY
    shards = sorted(path for path in out.iterdir() if is_shard_name(path.name))
    if shards and not note.exists():
        raise DataError(
            f"{out}: holds {shards[0].name} without an index.json; rebuild that with --rebuild-index {out}, "
            "choose another --out, or remove the shards"
        )
    for path in shards + [p for p in out.iterdir() if p.name.startswith(".tmp-")]:
        path.unlink()
    if not note.exists() or canonical_json(json.loads(note.read_text())) != canonical_json(identity):
        for path in [p for p in work.iterdir() if p.name != "lock"]:
            path.unlink()
        write_json(note, identity)


def clear(out: Path) -> None:
    """Remove the working folder, and what a killed run left half-written beside it. For complete sets only."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for path in out.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def spool_case(numbered: tuple[int, Case], options: SliceOptions, work: Path) -> None:
    """Encode the kept slices of one case into the spool, unless they are there."""
    number, case = numbered
    if _listing(work, number).exists():
        return
    volumes = read_checked(case, options.views, options.round_values)
    planes = [volumes.images] if volumes.labels is None else [volumes.images, volumes.labels[None]]
    planes_PXYZ = np.concatenate([p.astype(options.dtype, copy=False) for p in planes])
    rows: list[tuple[str, int, int, int, int]] = []
    with atomic_path(_blob(work, number)) as temporary, temporary.open("wb") as blob:
        for view in options.views:
            slices_KPHW = extract_slices(planes_PXYZ, view)
            for index in kept_slices(volumes.images, view, options.minimum_foreground).tolist():
                data = encode_slice(np.ascontiguousarray(slices_KPHW[index]), options.codec)
                tumour = 0 if volumes.labels is None else int(np.count_nonzero(slices_KPHW[index, -1]))
                rows.append((view, index, tumour, blob.tell(), len(data)))
                blob.write(data)
    write_json(_listing(work, number), rows)


def spooled(work: Path, cases: int) -> list[list[SpooledSample]]:
    """The spooled slices of cases 0 .. `cases` - 1."""
    return [
        [SpooledSample(number, *row) for row in json.loads(_listing(work, number).read_text())]
        for number in range(cases)
    ]


def payloads(samples: Iterable[SpooledSample], work: Path) -> Iterator[EncodedSample]:
    for s in samples:
        with _blob(work, s.case).open("rb") as blob:
            blob.seek(s.offset)
            yield EncodedSample(s.case, s.view, s.index, s.tumour_pixels, blob.read(s.size))


def _blob(work: Path, number: int) -> Path:
    return work / f"{number:06d}.blob"


def _listing(work: Path, number: int) -> Path:
    return work / f"{number:06d}.json"
