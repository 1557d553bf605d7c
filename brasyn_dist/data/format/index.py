"""Index of a shard set: the position of every sample, so that each can be read with one `pread`.

    train-*.tar, val-*.tar --rebuild_index--> ShardIndex <--load / save--> index.json, statistics.json
                                                  |
                                              .select(split, views, ...) --> Selection: numbered samples

`index.json` has the metadata of the set, and for each shard its name, size, SHA-256 and its samples as
columns of integers (`columns_of` in tar_shards.py); sample keys are derived from them. `fingerprint` covers
all of it, and through the SHA-256 every byte of the data. `Selection.fingerprint` also covers the choice:
equal ones mean the same samples.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import yaml

from brasyn_dist.brats import IMAGE_SIZE, tumour_type
from brasyn_dist.common.files import atomic_write_text, canonical_json
from brasyn_dist.data.format.metadata import CHUNK, KINDS, SetHeader
from brasyn_dist.data.format.tar_shards import (
    ShardEntry,
    columns_of,
    is_shard_name,
    read_shard,
    sample_key,
    shard_name,
)
from brasyn_dist.errors import DataError

INDEX_NAME = "index.json"
STATISTICS_NAME = "statistics.json"
REBUILD = "restore it, or rebuild it from the tars with `brasyn shard --rebuild-index FOLDER`"


class ShardStorage(Protocol):
    """The files of one shard set."""

    def location(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    def read(self, name: str) -> bytes:
        """Content of a small file (index.json), not cached. Raises DataError."""

    def use_set(self, fingerprint: str) -> None:
        """Set the fingerprint, once the index is read. Must be called before `open`."""

    def open(self, shard: ShardEntry) -> int:
        """File descriptor of a shard of the right size, for `os.pread`; the caller closes it.

        Raises:
            DataError: The shard is damaged or missing.
            ConfigError: The cache cannot store it.
        """


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """A shard set: metadata, shards (by split and number), and their location (None: not known)."""

    header: SetHeader
    shards: tuple[ShardEntry, ...]
    storage: ShardStorage | None = None

    def __post_init__(self) -> None:
        expected = [
            shard_name(split, number)
            for split, count in sorted(self.header.shard_counts.items())
            for number in range(count)
        ]
        found = {shard.name for shard in self.shards}
        if [shard.name for shard in self.shards] != expected:
            missing = [name for name in expected if name not in found]
            raise DataError(
                f"shard set is not complete: {len(expected)} shards expected, {len(found)} found"
                + (f", {missing[0]} is missing" if missing else "")
            )

    @classmethod
    def from_json(cls, data: bytes, where: object, storage: ShardStorage | None = None) -> "ShardIndex":
        """Inverse of `to_json`. Raises DataError, which names `where`."""
        try:
            values = json.loads(data)
            header = SetHeader.from_dict(values, where)
            index = cls(header, tuple(_entry_from_dict(s, header) for s in values["shards"]), storage)
            intact = index.fingerprint == values.get("fingerprint")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(f"{where}: damaged index ({error!r}); {REBUILD}") from None
        if not intact:
            raise DataError(f"{where}: content and fingerprint disagree, it was edited or damaged; {REBUILD}")
        return index

    def to_json(self) -> str:
        """Content of index.json: one line for each field of the metadata and for each shard."""
        facts = {**self.header.to_dict(), "statistics_sha256": self.statistics_sha256}
        lines = [f"{json.dumps(key)}: {_compact(value)}" for key, value in facts.items()]
        shards = ",\n".join(_compact(_entry_to_dict(shard, self.header)) for shard in self.shards)
        lines += [f'"shards": [\n{shards}\n]', f'"fingerprint": {json.dumps(self.fingerprint)}']
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, folder: Path | str) -> None:
        """Write statistics.json, then index.json: a set without index.json is not complete."""
        atomic_write_text(Path(folder) / STATISTICS_NAME, self._statistics_json())
        atomic_write_text(Path(folder) / INDEX_NAME, self.to_json())

    def _statistics_json(self) -> str:
        return json.dumps(self.header.statistics, indent=2, allow_nan=False) + "\n"

    @property
    def statistics_sha256(self) -> str:
        """sha256 of statistics.json, as `sha256sum` prints it."""
        return hashlib.sha256(self._statistics_json().encode()).hexdigest()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the header and of name, size, SHA-256 and sample columns of each shard."""
        digest = hashlib.sha256(canonical_json(self.header.to_dict()))
        for shard in self.shards:
            digest.update(canonical_json([shard.name, shard.split, shard.size, shard.sha256]))
            digest.update(np.ascontiguousarray(shard.columns, dtype="<i8").data)
        return digest.hexdigest()

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """(samples,) int64 arrays of all shards: `columns_of`, and `shard`, the number in `shards`."""
        names = columns_of(self.header)
        table = np.concatenate([shard.columns for shard in self.shards] or [np.empty((0, len(names)))])
        lengths = [len(shard) for shard in self.shards]
        columns = {name: np.ascontiguousarray(table[:, i], dtype=np.int64) for i, name in enumerate(names)}
        return {**columns, "shard": np.repeat(np.arange(len(lengths)), lengths)}

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def key(self, row: int) -> str:
        """Key of the sample in row `row` of `columns`."""
        case, view, index = (int(self.columns[name][row]) for name in ("case", "view", "index"))
        return sample_key(self.header.cases[case].name, KINDS[view], index)

    def rows_of(self, keys: Iterable[str]) -> np.ndarray:
        """Rows of `columns` of the keys. Raises DataError for a key that is not in the set."""
        case_numbers = {quote(case.name, safe=""): i for i, case in enumerate(self.header.cases)}
        rows: list[int] = []
        for key in keys:
            of_case = np.flatnonzero(self.columns["case"] == case_numbers.get(key.partition("/")[0], -1))
            found = [row for row in of_case.tolist() if self.key(row) == key]
            if not found:
                raise DataError(f"no sample {key!r} in the shard set; keys look like {self.key(0)!r}")
            rows += found
        return np.array(sorted(rows), dtype=np.int64)

    def select(
        self,
        split: str,
        views: Sequence[str] = (),
        cohorts: Sequence[str] = (),
        quarantine: Sequence[str] = (),
        min_tumour_fraction: float = 0.0,
    ) -> "Selection":
        """Samples of a split.

        Args:
            split: `train` or `val`.
            views: Empty: all. `chunk`, alone: the chunks, see `select_chunks` in chunks.py.
            cohorts: Empty: all.
            quarantine: Keys of samples to leave out; that of a chunk leaves out all chunks of its case.
            min_tumour_fraction: Labelled pixels as a fraction of 240 x 240; 0 without a segmentation.

        Raises:
            DataError: A name is not in the set, or no sample is left.
        """
        self._check_known("split", [split], [case.split for case in self.header.cases])
        slices = [view for view in views if view != CHUNK]
        if slices and not self.header.views:
            raise DataError("the shard set has chunks, but no slices; shard the cases without --no-slices")
        if len(slices) < len(views) and not self.header.chunk:
            raise DataError("the shard set has slices, but no chunks; shard the cases with --chunks 32")
        self._check_known("views", slices, self.header.views)
        self._check_known("cohorts", cohorts, [case.cohort for case in self.header.cases])
        cases, columns = self.header.cases, self.columns
        good_case = [c.split == split and (not cohorts or c.cohort in cohorts) for c in cases]
        keep = np.array(good_case, dtype=bool)[columns["case"]]
        keep &= np.isin(columns["view"], [KINDS.index(view) for view in views or self.header.views])
        keep &= columns["tumour_pixels"] >= min_tumour_fraction * IMAGE_SIZE**2
        keep[rows := self.rows_of(quarantine)] = False
        is_chunk = columns["view"] == KINDS.index(CHUNK)
        keep &= ~(is_chunk & np.isin(columns["case"], columns["case"][rows[is_chunk[rows]]]))
        if not keep.any():
            raise DataError(
                f"no sample is left of split {split}, views {list(views)}, cohorts {list(cohorts)}, "
                f"at least {min_tumour_fraction:.2%} tumour; widen the choice"
            )
        return Selection(self, np.flatnonzero(keep))

    @staticmethod
    def _check_known(what: str, asked: Sequence[str], known: Iterable[str]) -> None:
        unknown = sorted(set(asked) - set(known))
        if unknown:
            names = sorted(set(known))
            available = ", ".join(names)
            # YAML quotes names that contain a comma.
            choice = yaml.safe_dump(
                names, default_flow_style=True, allow_unicode=True, width=math.inf
            ).strip()
            remedy = f'; set "data.{what}={choice.strip()}"' if what != "split" else ""
            if what == "cohorts":
                remedy += ', or "data.cohorts=[]" for all'
            raise DataError(
                f"{what} {', '.join(unknown)}: not in the shard set, which holds {available}{remedy}"
            )


@dataclass(frozen=True, eq=False)
class Selection:
    """Samples 0 to len - 1 of a shard set, in tar order. `rows` are their rows in `index.columns`."""

    index: ShardIndex
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str, samples: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(n,) int64: a column of the index of `samples` (default: all); see `ShardIndex.columns`."""
        return self.index.columns[name][self.rows[samples]]

    @functools.cached_property
    def _positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(len, 3) case, view, slice of each sample; the samples in this order; the rank of each in it."""
        positions = np.stack([self.column(name) for name in ("case", "view", "index")], axis=1)
        order = np.lexsort(positions.T[::-1])
        return positions, order, np.argsort(order)

    def neighbours(self, sample: int, context: int) -> list[int]:
        """Samples of the `context` slices before and after a sample, in the order of their position.

        A slice that was not kept is replaced by the next kept one towards the sample, or by the sample.
        """
        if not context:
            return []
        positions, order, ranks = self._positions
        rank = ranks[sample]
        near = order[max(0, rank - context) : rank + context + 1]
        offsets = positions[near] - positions[sample]
        near, offset = near[(offsets[:, :2] == 0).all(1)], offsets[(offsets[:, :2] == 0).all(1), 2]
        wanted = [d for d in range(-context, context + 1) if d]
        between = [(offset * np.sign(d) >= 0) & (np.abs(offset) <= abs(d)) for d in wanted]
        return [int(near[np.argmax(np.where(b, np.abs(offset), -1))]) for b in between]

    @functools.cached_property
    def shard(self) -> np.ndarray:
        """(len,) int64 number of the shard of each sample, for SampleOrder."""
        return self.column("shard")

    @functools.cached_property
    def tumour_type(self) -> np.ndarray:
        """(len,) int64 tumour type of each sample, see brats.tumour_type."""
        of_case = [tumour_type(case.cohort, case.name) for case in self.index.header.cases]
        return np.array(of_case, dtype=np.int64)[self.column("case")]

    @functools.cached_property
    def medians(self) -> np.ndarray | None:
        """(cases, M) float32 median of the foreground, by number of the case; None in older sets."""
        of_case = [case.medians for case in self.index.header.cases]
        return None if None in of_case else np.array(of_case, dtype=np.float32)

    def key(self, sample: int) -> str:
        """Key of a sample."""
        return self.index.key(int(self.rows[sample]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the fingerprint of the set and the chosen samples."""
        digest = hashlib.sha256(self.index.fingerprint.encode())
        digest.update(np.ascontiguousarray(self.rows, dtype="<i8").data)
        return digest.hexdigest()


def rebuild_index(folder: Path | str) -> ShardIndex:
    """The index of the shards in `folder`, from the tars alone. `.save(folder)` restores the files.

    Raises:
        DataError: A shard is damaged or missing, or belongs to another set.
    """
    paths = sorted(path for path in Path(folder).glob("*.tar") if is_shard_name(path.name))
    if not paths:
        raise DataError(f"{folder}: no shards such as {shard_name('train', 0)} in it")
    header, _ = first = read_shard(paths[0])
    entries = [first[1]]
    for path in paths[1:]:
        other, entry = read_shard(path)
        if other != header:
            raise DataError(
                f"{path}: belongs to another shard set than {paths[0].name}; keep one set in a folder"
            )
        entries.append(entry)
    return ShardIndex(header, tuple(entries))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _entry_to_dict(shard: ShardEntry, header: SetHeader) -> dict[str, Any]:
    samples = {name: shard.columns[:, i].tolist() for i, name in enumerate(columns_of(header))}
    return {
        "name": shard.name, "split": shard.split, "size": shard.size, "sha256": shard.sha256,
        "samples": samples,
    }  # fmt: skip


def _entry_from_dict(values: dict[str, Any], header: SetHeader) -> ShardEntry:
    if not is_shard_name(values["name"]):
        raise ValueError(f"shard name {values['name']!r}")
    columns = np.array([values["samples"][name] for name in columns_of(header)], dtype=np.int64).T
    return ShardEntry(
        values["name"], values["split"], values["size"], values["sha256"], np.ascontiguousarray(columns)
    )
