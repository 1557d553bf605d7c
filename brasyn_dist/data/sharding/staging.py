"""The spool: encoded slices of each case on disk, between reading the cases and filling the shards.

    <out>/.work/identity.json     what the spool was made of; another making empties it
               /lock              held by the run that uses it
               /CASE.blob         encoded slices of a case, one after the other
               /CASE.slices.json  where each begins; written after the blob, hence: the case is done

Shards take their slices from all cases, so all must be encoded before the first shard is full. Memory stays bounded, and a
killed run goes on where it was.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from brasyn_dist.brats import Case
from brasyn_dist.common.files import atomic_path, canonical_json, write_json
from brasyn_dist.data.case_folders import read_checked
from brasyn_dist.data.format.codec import SliceEncoder
from brasyn_dist.data.format.tar_shards import EncodedSample, is_shard_name
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.slicing import extract_slices, kept_slices

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
    """An encoded slice in the spool: bytes `offset` .. `offset` + `size` of the blob of case `name`."""

    name: str
    case: int
    """Its number in the set's table of cases."""
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


def discard(out: Path) -> None:
    """Remove the working folder, and `out` if there is nothing else in it: as if there had been no run."""
    clear(out)
    with suppress(OSError):
        out.rmdir()


def clear(out: Path) -> None:
    """Remove the working folder, and what a killed run left half-written beside it."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for path in out.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def is_spooled(name: str, work: Path) -> bool:
    """Whether all kept slices of that case are there."""
    return _listing(work, name).exists()


def spool_case(case: Case, options: SliceOptions, work: Path) -> None:
    """Read a case and encode its kept slices into the spool."""
    spool_volumes(read_checked(case, options.views, options.round_values), options, work)


def spool_if_it_fits(volumes: CaseVolumes, options: SliceOptions, work: Path) -> None:
    """Encode the kept slices of a case, unless they are there, or are values that `options.dtype` cannot hold."""
    if not is_spooled(volumes.case.name, work) and np.can_cast(volumes.images.dtype, options.dtype):
        spool_volumes(volumes, options, work)


def spool_volumes(volumes: CaseVolumes, options: SliceOptions, work: Path) -> None:
    """Encode the kept slices of a case into the spool."""
    name, encode = volumes.case.name, SliceEncoder(options.codec)
    rows: list[tuple[str, int, int, int, int]] = []
    kept = {v: kept_slices(volumes.foreground, v, options.minimum_foreground).tolist() for v in options.views}
    as_read = volumes.images.astype(options.dtype, copy=False), volumes.labels
    x_slowest = with_x_slowest(*as_read) if {*kept} - {"axial"} else as_read
    with atomic_path(_blob(work, name)) as temporary, temporary.open("wb") as blob:
        for view in options.views:
            images, labels = as_read if view == "axial" else x_slowest
            images_KMHW = extract_slices(images, view)
            labels_KHW = None if labels is None else extract_slices(labels, view)
            for index in kept[view]:
                labels_HW = None if labels_KHW is None else labels_KHW[index]
                data = encode(images_KMHW[index], labels_HW)
                tumour = 0 if labels_HW is None else int(np.count_nonzero(labels_HW))
                rows.append((view, index, tumour, blob.tell(), len(data)))
                blob.write(data)
    write_json(_listing(work, name), rows)


def with_x_slowest(images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Copies in C order.

    As read, x is fastest in memory: right for axial slices, while a sagittal one would touch a cache line for each value.
    """
    return np.ascontiguousarray(images), None if labels is None else np.ascontiguousarray(labels)


def spooled(work: Path, names: Sequence[str]) -> list[list[SpooledSample]]:
    """The spooled slices of the cases, which are numbered in that order."""
    return [
        [SpooledSample(name, number, *row) for row in json.loads(_listing(work, name).read_text())]
        for number, name in enumerate(names)
    ]


def payloads(samples: Iterable[SpooledSample], work: Path) -> Iterator[EncodedSample]:
    for s in samples:
        with _blob(work, s.name).open("rb") as blob:
            blob.seek(s.offset)
            yield EncodedSample(s.case, s.view, s.index, s.tumour_pixels, blob.read(s.size))


def _blob(work: Path, name: str) -> Path:
    return work / f"{quote(name, safe='')}.blob"


def _listing(work: Path, name: str) -> Path:
    return work / f"{quote(name, safe='')}.slices.json"
