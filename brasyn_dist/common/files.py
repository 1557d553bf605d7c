"""Files that are either complete or absent: temporary name, flush to disk, rename."""

import codecs
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from brasyn_dist.errors import DataError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Error numbers after which no further file can be written: full disk, quota, size limit, disk failure."""
_SPACE = "free space there, then run the same command again"
_ACCESS = "change its permissions, or give another folder"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ACCESS),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR), "a file is in the place of a folder; move it, or give another path"
    ),
    errno.EISDIR: "a folder is in the place of a file; move it, or give another path",
    errno.ENOENT: "give a path that exists",
    errno.ENAMETOOLONG: "shorten the name",
}


def os_error_text(error: OSError) -> str:
    """Path, cause and remedy of a failed file operation, in one line."""
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0, "remove the cause, then run the same command again")
    return f"{where}{error.strerror or error}; {remedy}"


def make_folder(path: Path) -> Path:
    """Create a folder to write to, unless it exists. Raises OSError if nothing can be written there."""
    path.mkdir(parents=True, exist_ok=True)
    check_folder(path)
    return path


def check_folder(path: Path) -> None:
    """Raise OSError if a folder cannot be written to, or cannot be created."""
    existing = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir():
        number = errno.ENOTDIR
    elif not os.access(existing, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
    else:
        return
    raise OSError(number, os.strerror(number), str(existing))


@contextmanager
def naming(path: Path | str, temporary: Path | None = None) -> Iterator[None]:
    """Context whose OSErrors name `path`: those of writes name no file, others the temporary one."""
    try:
        yield
    except OSError as error:
        copying = error.filename2 == str(temporary) and error.errno in FULL  # shutil names both files
        if copying or error.filename is None or os.fspath(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def expand_path(path: str) -> str:
    """Replace `~` and `$VARIABLES` in a path; a `pipe:` command is left to its shell.

    Raises:
        ValueError: The path is empty, or an environment variable is not set.
    """
    if path.startswith("pipe:"):
        return path
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 (a URL must stay as it is)
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset and not Path(path).exists():
        raise ValueError(f"a path; the environment variable {unset[1].strip('{}')} is not set")
    if not expanded.strip() or "\0" in expanded:
        raise ValueError("a path that is not empty")
    return expanded


def read_text(path: Path | str, remedy: str = "give a file that exists") -> str:
    """Text of a file that a user wrote: UTF-8, or UTF-16 with a byte order mark; line ends of any system.

    Raises:
        DataError: The file cannot be read, with the remedy, or is no such text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file in UTF-8; save it in UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Temporary path beside `path`, with its suffixes.

    It is flushed and renamed on success, and removed on failure.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with naming(path, temporary):
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
    atomic_write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON with the keys in their order. Raises ValueError for NaN, which is not JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The mapping in a JSON file; empty if the file is missing or damaged."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, DataError):
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
