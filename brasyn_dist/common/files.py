"""Files that are either whole or absent: temporary name, flush to disk, rename."""

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Temporary path beside `path` (same suffixes); on success it is flushed and renamed, on failure removed."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def remove_abandoned(folder: Path, names: Collection[str]) -> None:
    """Remove temporary files for `names` that killed processes left. For when nobody is at work in the folder any more."""
    for path in folder.glob(".tmp-*"):
        if path.name.split("-", 2)[-1] in names:
            path.unlink(missing_ok=True)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path | str, text: str) -> None:
    atomic_write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Indented JSON, keys in the order given, newline at the end; NaN is refused (it is not JSON)."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def canonical_json(value: Any) -> bytes:
    """One byte string for equal values: what hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
