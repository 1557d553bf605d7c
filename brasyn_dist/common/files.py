"""Files that are either complete or absent: temporary name, flush to disk, rename."""

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
    """Temporary path beside `path`, with its suffixes.

    It is flushed and renamed on success, and removed on failure.
    """
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
    """Remove temporary files of `names` that killed processes left.

    No other process may be writing in the folder.
    """
    for path in folder.glob(".tmp-*"):
        if path.name.split("-", 2)[-1] in names:
            path.unlink(missing_ok=True)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    atomic_write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON with the keys in their order. Raises ValueError for NaN, which is not JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The mapping in a JSON file; empty if the file is missing or damaged."""
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def json_lines(text: str) -> Iterator[dict[str, Any]]:
    """Mappings of a text with one JSON object for each line; lines that killed processes left are skipped."""
    for line in text.splitlines():
        with suppress(ValueError):
            if isinstance(values := json.loads(line), dict):
                yield values


def atomic_link(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to a file or folder; an existing link is replaced."""
    with atomic_path(path) as temporary:
        temporary.symlink_to(target.resolve(), target_is_directory=target.is_dir())


def canonical_json(value: Any) -> bytes:
    """JSON as bytes that are equal for equal values, for hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def fsync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
