"""Node-local cache of shards that are in a slow folder or behind a URL.

    open --> in the cache? --yes--> descriptor
               |no
             lock --> make room --> fetch --> verify size and SHA-256 --> rename --> descriptor

    <cache_dir>/<fingerprint of the set>/train-00000.tar    complete and verified, or absent

File locks coordinate the processes of a node: one fetches a shard, the others wait for it. Above the size
limit, or if the disk is full, the least recently opened shards are removed. A removed shard that is in use
stays readable, because its readers have it open; its space is free when they close it. If the limit is below
the size of the set, order.block_shards avoids fetching shards repeatedly. The cache folder may be removed at
any time between runs.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.data.loading.transfer import TransferError, with_retries
from brasyn_dist.errors import ConfigError, DataError

MAXIMUM_COPIES = 2
"""A shard is fetched at most this often before it counts as damaged at its source."""


class ShardOrigin(Protocol):
    """Where the cache fetches files from (storage.py)."""

    def location(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    def read(self, name: str) -> bytes:
        """Content of a small file. Raises DataError."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Content of a file in pieces. Raises DataError."""


def default_cache_dir() -> Path:
    """A folder of this user below the system's temporary folder (TMPDIR, which Slurm may set)."""
    return Path(tempfile.gettempdir()) / f"brasyn_dist-{os.getuid()}"


class ShardCache:
    """Copies of the shards of `origin` in `root`/<fingerprint>.

    All sets below `root` share the limit, in bytes.
    """

    def __init__(self, origin: ShardOrigin, root: Path, limit: int) -> None:
        self._origin = origin
        self._root = root
        self._limit = limit
        self._folder = root

    def location(self, name: str) -> str:
        """See ShardStorage."""
        return self._origin.location(name)

    def read(self, name: str) -> bytes:
        """See ShardStorage."""
        return self._origin.read(name)

    def use_set(self, fingerprint: str) -> None:
        """See ShardStorage."""
        self._folder = self._root / fingerprint[:16]
        try:
            # Patient data: not readable by others, also in a shared temporary folder.
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: {error.strerror}; set data.cache_dir to a folder to write to"
            ) from None

    def open(self, shard: ShardEntry) -> int:
        """See ShardStorage."""
        path = self._folder / shard.name
        try:
            descriptor = _open_cached(path, shard.size)
            if descriptor is None:
                with FileLock(_lock_of(path)):
                    # Another process may have fetched it while this one waited for the lock.
                    descriptor = _open_cached(path, shard.size)
                    if descriptor is None:
                        descriptor = self._fetch(shard, path)
            return descriptor
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}; free some space, or set data.cache_dir to another folder"
            ) from None

    def _fetch(self, shard: ShardEntry, path: Path) -> int:
        """Fetch, verify and open a shard whose lock is held. Incomplete files are removed."""
        part = _part_of(path)
        try:
            self._reserve(part, shard.size)
            self._download(shard, part)
            # Opened before it is renamed: afterwards another process may remove it to make room.
            descriptor = os.open(part, os.O_RDONLY)
            _mark_used(descriptor)
            os.fsync(descriptor)
            part.replace(path)
            return descriptor
        finally:
            part.unlink(missing_ok=True)

    def _download(self, shard: ShardEntry, part: Path) -> None:
        where, problem = self.location(shard.name), ""
        for _ in range(MAXIMUM_COPIES):
            try:
                size, sha256 = with_retries(
                    lambda: _copy(self._origin.chunks(shard.name), part, shard.size), where
                )
            except TransferError:
                raise
            except DataError as error:
                problem = str(error)
                continue
            if (size, sha256) == (shard.size, shard.sha256):
                return
            problem = (
                f"{where}: fetched {size} bytes with sha256 {sha256}, "
                f"the index says {shard.size} and {shard.sha256}"
            )
        raise DataError(f"{problem} (tried {MAXIMUM_COPIES} times); restore the shard at its source")

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for `size` bytes and allocate them: simultaneous fetches must not exceed the limit."""
        part.unlink(missing_ok=True)
        while not self._try_reserve(part, size):
            time.sleep(
                0.05
            )  # other fetches hold the room; their shards may be removed when they are complete

    def _try_reserve(self, part: Path, size: int) -> bool:
        with FileLock(self._root / ".lock"):
            missing, under_way = self._evict(size)
            if missing > 0 and not under_way:
                raise ConfigError(
                    f"{self._root}: no room for a shard of {size} bytes, {missing} are missing; "
                    "raise data.cache_gib, or "
                    "set data.cache_dir to a folder with more space"
                )
            if missing <= 0:
                with part.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            return missing <= 0

    def _evict(self, size: int) -> tuple[int, bool]:
        """Remove the least recently opened shards until `size` more bytes fit the limit and the disk.

        Returns:
            Bytes that are still missing (0 or less: none), and whether fetches are under way.
        """
        for part in self._root.glob("*/.*.part"):
            _remove_abandoned(part)
        under_way = [_use(path)[1] for path in self._root.glob("*/.*.part")]
        cached = sorted((_use(path) for path in self._root.glob("*/*.tar")), reverse=True)
        used = sum(under_way) + sum(bytes_ for _, bytes_, _ in cached)
        limit = min(self._limit, used + shutil.disk_usage(self._root).free)
        while cached and used + size > limit:
            _, freed, path = cached.pop()
            path.unlink(missing_ok=True)
            used -= freed
        return used + size - limit, bool(under_way)


def _open_cached(path: Path, size: int) -> int | None:
    """Descriptor of a fetched shard, which is marked as used; None if it is absent or has another size."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    _mark_used(descriptor)
    return descriptor


def _mark_used(descriptor: int) -> None:
    """Store the time of last use as modification time: file systems are mounted without access times."""
    os.utime(descriptor, ns=(time.time_ns(), time.time_ns()))


def _copy(chunks: Iterator[bytes], path: Path, limit: int) -> tuple[int, str]:
    """Write `chunks` to `path`; stops when it is longer than `limit`. Returns (bytes, SHA-256)."""
    digest, size = hashlib.sha256(), 0
    with path.open("r+b") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if size > limit:
                break
        file.truncate()  # an attempt before may have written more
    return size, digest.hexdigest()


def _use(path: Path) -> tuple[int, int, Path]:
    """(time of last use, bytes, path); zeros if it was removed meanwhile."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0, path
    return status.st_mtime_ns, status.st_size, path


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _remove_abandoned(part: Path) -> None:
    """Remove a partial file whose process was killed: its lock is free."""
    path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
    with suppress(Timeout, FileNotFoundError), FileLock(_lock_of(path), blocking=False):
        part.unlink()
