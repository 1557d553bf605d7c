"""Shards: plain POSIX tar files that hold slices, written once, reproducibly.

    SetHeader + encoded samples  --write_shard-->  train-00003.tar + ShardEntry  --read_shard-->  the same two again

    train-00003.tar
      pax global header, keyword `comment`: {"set": SetHeader, "split": "train", "number": 3} as JSON
      BraTS-GLI-00000-000/axial/077.npy.zst     payload (see codec.py)
      BraTS-GLI-00000-000/axial/077.json        {"case", "cohort", "split", "view", "index", "segmentation", "tumour_pixels"}
      ...

Two members a sample, named as the WebDataset convention wants it: any tar tool and stock `webdataset` read them. Owner,
time and mode are constants, so equal samples give equal bytes. What is said about the set is repeated in each of its
tars: the index (index.py) can be rebuilt from them alone.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from brasyn_dist.brats import MODALITIES, VIEWS
from brasyn_dist.data.codec import DTYPES, check_codec, decode_slice
from brasyn_dist.errors import DataError
from brasyn_dist.files import atomic_path, sha256_of

FORMAT = "brasyn_dist shards"
VERSION = 1
COLUMNS = ("case", "view", "index", "offset", "size", "tumour_pixels")
"""Integers kept of each sample: number in the case table, number in VIEWS, slice number, where its payload lies in the tar."""

_NAME = re.compile(r"(?P<split>[a-z][a-z0-9_]*)-(?P<number>\d{5})\.tar")


@dataclass(frozen=True)
class CaseEntry:
    """One row of a set's case table."""

    name: str
    cohort: str
    split: str
    patient: str
    segmentation: bool
    """False: the case has no segmentation, and its slices have no label plane."""


@dataclass(frozen=True)
class SetHeader:
    """What all shards of a set have in common; each of them carries it."""

    codec: str
    dtype: str
    seed: int
    """Seed of the split and of the order in which slices were written."""
    views: tuple[str, ...]
    shard_counts: dict[str, int]
    """Number of shards of each split, e.g. {"train": 12, "val": 2}."""
    cases: tuple[CaseEntry, ...]
    statistics: dict[str, Any]
    """Content of statistics.json."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Cases left out: {"case", "cohort", "reason"}."""
    options: dict[str, Any] = field(default_factory=dict)
    """Other options the set was made with, for the record."""

    def __post_init__(self) -> None:
        check_codec(self.codec)
        if self.dtype not in DTYPES:
            raise DataError(f"shard set of dtype {self.dtype!r}; this version reads {', '.join(DTYPES)}")
        if set(self.views) - set(VIEWS):
            raise DataError(f"shard set with unknown views {self.views}; expected {', '.join(VIEWS)}")

    def to_dict(self) -> dict[str, Any]:
        """JSON content; the case table as columns, which is a third of the size."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        values["views"] = list(self.views)
        values["cases"] = {
            name: [getattr(case, name) for case in self.cases] for name in CaseEntry.__dataclass_fields__
        }
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: object) -> "SetHeader":
        """Inverse of to_dict. Raises DataError naming `where` if this version cannot read the set."""
        found = (values.get("format"), values.get("version"))
        if found != (FORMAT, VERSION):
            raise DataError(
                f"{where}: expected {FORMAT!r} version {VERSION}, found {found[0]!r} version {found[1]!r}; "
                "write the shards again with this version, or use the version that wrote them"
            )
        try:
            return cls(
                codec=values["codec"],
                dtype=values["dtype"],
                seed=values["seed"],
                views=tuple(values["views"]),
                shard_counts=values["shard_counts"],
                cases=tuple(
                    CaseEntry(*row)
                    for row in zip(*(values["cases"][f] for f in CaseEntry.__dataclass_fields__), strict=True)
                ),
                statistics=values["statistics"],
                skipped=values["skipped"],
                options=values["options"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: damaged description of the shard set ({error!r})") from None


@dataclass(frozen=True)
class EncodedSample:
    """A slice ready to be written: `case` is its number in the header's case table, `payload` from encode_slice."""

    case: int
    view: str
    index: int
    tumour_pixels: int
    payload: bytes


@dataclass(frozen=True, eq=False)
class ShardEntry:
    """What the index knows of one shard; `columns` is (samples, 6) int64 in the order of COLUMNS."""

    name: str
    split: str
    size: int
    sha256: str
    columns: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)


def sample_key(case: str, view: str, index: int) -> str:
    """`<case>/<view>/<index>`, other characters than letters, digits and `_.-~` percent-encoded."""
    return f"{quote(case, safe='')}/{view}/{index:03d}"


def shard_name(split: str, number: int) -> str:
    """`train-00003.tar`; raises DataError if the split's name is not plain lower case."""
    name = f"{split}-{number:05d}.tar"
    if not _NAME.fullmatch(name):
        raise DataError(
            f"split {split!r}: use lower-case letters, digits and _ in names of splits, such as train and val"
        )
    return name


def is_shard_name(name: str) -> bool:
    """Names come from files and may end up in paths and commands: nothing but `train-00003.tar` passes."""
    return _NAME.fullmatch(name) is not None


def write_shard(
    folder: Path | str, header: SetHeader, split: str, number: int, samples: Iterable[EncodedSample]
) -> ShardEntry:
    """Write shard `number` of `split` into `folder`, whole or not at all."""
    path = Path(folder) / shard_name(split, number)
    comment = json.dumps(
        {"set": header.to_dict(), "split": split, "number": number}, separators=(",", ":"), allow_nan=False
    )
    rows = []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        sink = _HashingFile(file)
        with tarfile.open(
            fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": comment}
        ) as tar:
            for sample in samples:
                rows.append(_add_sample(tar, sink, header, sample))
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
    return ShardEntry(path.name, split, sink.position, sink.sha256.hexdigest(), columns)


def _add_sample(
    tar: tarfile.TarFile, sink: "_HashingFile", header: SetHeader, sample: EncodedSample
) -> tuple[int, ...]:
    case = header.cases[sample.case]
    key = sample_key(case.name, sample.view, sample.index)
    description = {
        "case": case.name, "cohort": case.cohort, "split": case.split, "view": sample.view, "index": sample.index,
        "segmentation": case.segmentation, "tumour_pixels": sample.tumour_pixels,
    }  # fmt: skip
    _add_member(tar, f"{key}.{header.codec}", sample.payload)
    size = len(sample.payload)
    offset = sink.position - _padded(size)
    _add_member(tar, f"{key}.json", json.dumps(description).encode())
    return (sample.case, VIEWS.index(sample.view), sample.index, offset, size, sample.tumour_pixels)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time 0, owner 0, mode 0644: the same bytes on every machine
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class _HashingFile(io.RawIOBase):
    """Counts and hashes what is written through it: a shard is not read again to be described."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.position += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.position


def read_shard(path: Path | str) -> tuple[SetHeader, ShardEntry]:
    """Header and entry of a shard, from its bytes alone. Raises DataError if it is damaged or no shard."""
    path = Path(path)
    try:
        with tarfile.open(path, "r:") as tar:
            header, split, number = _parse_comment(path, tar.pax_headers.get("comment"))
            case_numbers = {case.name: i for i, case in enumerate(header.cases)}
            members = tar.getmembers()
            _check_end(path, members)
            rows = [
                _read_sample(tar, header, case_numbers, payload, description)
                for payload, description in zip(members[::2], members[1::2], strict=True)
            ]
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{path}: damaged shard ({error}); restore it or write it again") from None
    if path.name != shard_name(split, number):
        raise DataError(f"{path}: holds shard {shard_name(split, number)}; give it back that name")
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
    return header, ShardEntry(path.name, split, path.stat().st_size, sha256_of(path), columns)


def _check_end(path: Path, members: list[tarfile.TarInfo]) -> None:
    """After the last member only the empty blocks that end a tar file may follow.

    tarfile takes a damaged member header, and a file that was cut off between two members, for the end.
    """
    if not members:
        raise ValueError("it holds no samples")
    with path.open("rb") as file:
        file.seek(members[-1].offset_data + _padded(members[-1].size))
        rest = file.read()
    if len(rest) < 2 * tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise ValueError(f"it cannot be read beyond member {members[-1].name}")


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _parse_comment(path: Path, comment: str | None) -> tuple[SetHeader, str, int]:
    values = json.loads(comment or "{}")
    if "set" not in values:
        raise ValueError("its global header describes no shard set")
    return SetHeader.from_dict(values["set"], path), values["split"], values["number"]


def _read_sample(
    tar: tarfile.TarFile,
    header: SetHeader,
    case_numbers: dict[str, int],
    payload: tarfile.TarInfo,
    description: tarfile.TarInfo,
) -> tuple[int, ...]:
    """Columns of a sample. Its payload is decoded: an index must not vouch for damaged data."""
    key = payload.name.removesuffix(f".{header.codec}")
    if description.name != f"{key}.json":
        raise ValueError(f"member {payload.name} is not followed by {key}.json")
    said = json.loads(_content(tar, description))
    if sample_key(said["case"], said["view"], said["index"]) != key:
        raise ValueError(f"{description.name} describes another sample, {said}")
    try:
        planes = len(decode_slice(_content(tar, payload), header.codec))
    except DataError as error:
        raise ValueError(f"{payload.name}: {error}") from None
    case = case_numbers[said["case"]]
    if (planes > len(MODALITIES)) != header.cases[case].segmentation:
        raise ValueError(f"{payload.name} has {planes} planes, against the case table")
    return (
        case, VIEWS.index(said["view"]), said["index"], payload.offset_data, payload.size, said["tumour_pixels"]
    )  # fmt: skip


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"member {member.name} is no file")
    return file.read()
