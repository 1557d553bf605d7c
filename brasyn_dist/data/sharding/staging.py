"""Staging folder: encoded samples of each case on disk, between reading the cases and writing the shards.

    <out>/.work/identity.json     options and input of the samples; the folder is emptied if they differ
               /lock              locked by the run that uses the folder /CASE.blob         encoded samples of
               a case, one after the other /CASE.slices.json  where each begins; written after the blob and
               therefore last: the case is complete

A shard has slices of all cases, so all cases must be encoded before the first shard is complete. The folder
bounds the memory and lets a killed run continue.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from brasyn_dist.brats import Case
from brasyn_dist.common.files import atomic_path, canonical_json, make_folder, write_json
from brasyn_dist.data.case_folders import read_usable_case
from brasyn_dist.data.format.codec import SliceEncoder
from brasyn_dist.data.format.metadata import CHUNK
from brasyn_dist.data.format.tar_shards import EncodedSample, is_shard_name
from brasyn_dist.data.nifti import CaseVolumes
from brasyn_dist.data.sharding.options import ShardOptions
from brasyn_dist.data.sharding.stage1_volumes import read_stage1
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.chunking import chunk_box, grid_of
from brasyn_dist.preprocessing.slicing import extract_slices, kept_slices

log = logging.getLogger(__name__)
WORK = ".work"
_IDENTITY = "identity.json"
_LOCK = "lock"


@dataclass(frozen=True)
class StagedSample:
    """An encoded slice or chunk: bytes `offset` to `offset` + `size` of the blob of case `name`."""

    name: str
    case: int
    """Number of the case in the case table of the set."""
    view: str
    index: int
    tumour_pixels: int
    offset: int
    size: int
    brain: int = 0


@contextmanager
def locked_staging(out: Path) -> Iterator[Path]:
    """The staging folder of `out`, exclusively locked. The kernel releases the lock of a killed process.

    Raises:
        DataError: Another run has the lock.
    """
    work = out / WORK
    make_folder(work)
    lock = FileLock(work / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise DataError(f"{out}: another run is writing here; wait for it, or choose another --out") from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s); make sure that no other run writes there", out, error.strerror)
    try:
        yield work
    finally:
        lock.release()


def prepare_staging(work: Path, identity: dict[str, Any]) -> None:
    """Remove the shards of an unfinished set, and empty the staging folder unless it has the same identity.

    Raises:
        DataError: There are shards, but no identity file that shows that they are unfinished.
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
        for path in [p for p in work.iterdir() if p.name != _LOCK]:
            path.unlink()
        write_json(note, identity)


def remove_output(out: Path) -> None:
    """Remove the staging folder, and `out` if it is empty then."""
    remove_staging(out)
    with suppress(OSError):
        out.rmdir()


def remove_staging(out: Path) -> None:
    """Remove the staging folder and the temporary files of killed runs."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for path in out.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def is_staged(name: str, work: Path) -> bool:
    """Whether all samples of a case are encoded."""
    return _listing(work, name).exists()


def stage_case(case: Case, options: ShardOptions, dtype: str, work: Path) -> None:
    """Read a case and encode its samples."""
    volumes = read_usable_case(case, options.views, options.round_values, options.assume)
    stage1 = read_stage1(volumes, options.stage1, options.assume) if options.stage1 else None
    stage_volumes(volumes, stage1, options, dtype, work)


def stage_volumes(
    volumes: CaseVolumes, stage1: np.ndarray | None, options: ShardOptions, dtype: str, work: Path
) -> None:
    """Encode the kept slices and the chunks of a case into the staging folder `work`.

    Args:
        volumes: The case.
        stage1: (M, x, y, z) stage-1 volumes, for the chunks.
        options: Views, chunks and codec.
        dtype: Type of the encoded integers.
        work: Staging folder.
    """
    rows: list[tuple[str, int, int, int, int, int]] = []
    with atomic_path(_blob(work, volumes.case.name)) as temporary, temporary.open("wb") as blob:
        for sample in (*_slices(volumes, options, dtype), *_chunks(volumes, stage1, options, dtype)):
            at = (blob.tell(), len(sample.payload))
            rows.append((sample.view, sample.index, sample.tumour_pixels, *at, sample.brain))
            blob.write(sample.payload)
    write_json(_listing(work, volumes.case.name), rows)


def _slices(volumes: CaseVolumes, options: ShardOptions, dtype: str) -> Iterator[EncodedSample]:
    """The kept slices, encoded. The number of the case is set when they are read."""
    encode, highest = SliceEncoder(options.codec), options.modality_set.highest_label
    images, labels = volumes.images.astype(dtype, copy=False), volumes.labels
    kept = {v: kept_slices(volumes.foreground, v, options.minimum_foreground).tolist() for v in options.views}
    for view in options.views:
        if view != "axial":
            # As read, x is the fastest axis: a sagittal slice would need a cache line for each value.
            images = np.ascontiguousarray(images)
            labels = None if labels is None else np.ascontiguousarray(labels)
        images_KMHW = extract_slices(images, view)
        labels_KHW = None if labels is None else extract_slices(labels, view)
        for index in kept[view]:
            labels_HW = None if labels_KHW is None else labels_KHW[index]
            data = encode(images_KMHW[index], labels_HW)
            yield EncodedSample(-1, view, index, _tumour(labels_HW, highest), data)


def _chunks(
    volumes: CaseVolumes, stage1: np.ndarray | None, options: ShardOptions, dtype: str
) -> Iterator[EncodedSample]:
    """The chunks that are not background everywhere, encoded."""
    if options.chunks is None:
        return
    encode, highest = SliceEncoder(options.codec), options.modality_set.highest_label
    shape = volumes.images.shape[1:]
    images = np.ascontiguousarray(volumes.images, dtype)
    more = None if stage1 is None else np.ascontiguousarray(stage1, dtype)
    for number in range(math.prod(grid_of(shape, options.chunks))):
        box = (slice(None), *chunk_box(number, shape, options.chunks))
        cut = images[box]
        planes = cut if more is None else np.concatenate([cut, more[box]])
        labels = None if volumes.labels is None else volumes.labels[box[1:]]
        if planes.any() or (labels is not None and labels.any()):
            brain = int(np.count_nonzero((cut > 0).any(0)))
            yield EncodedSample(-1, CHUNK, number, _tumour(labels, highest), encode(planes, labels), brain)


def _tumour(labels: np.ndarray | None, highest: int) -> int:
    return 0 if labels is None else int(np.count_nonzero((labels > 0) & (labels <= highest)))


def staged_samples(work: Path, names: Sequence[str]) -> list[list[StagedSample]]:
    """Encoded samples of the cases; the position in `names` is the number of the case."""
    return [
        [StagedSample(name, number, *row) for row in json.loads(_listing(work, name).read_text())]
        for number, name in enumerate(names)
    ]


def read_staged(samples: Iterable[StagedSample], work: Path) -> Iterator[EncodedSample]:
    """The encoded bytes of the samples, one after the other."""
    for s in samples:
        with _blob(work, s.name).open("rb") as blob:
            blob.seek(s.offset)
            yield EncodedSample(s.case, s.view, s.index, s.tumour_pixels, blob.read(s.size), s.brain)


def _blob(work: Path, name: str) -> Path:
    return work / f"{name}.blob"


def _listing(work: Path, name: str) -> Path:
    return work / f"{name}.slices.json"
