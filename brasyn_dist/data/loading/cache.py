"""A node-local cache of shards that lie behind a URL.

    open --> kept? --yes--> descriptor
               |no
             lock --> make room --> fetch --> verify size and sha256 --> rename --> descriptor

    <cache_dir>/<fingerprint of the set>/train-00000.tar    appears whole and verified, or not at all

Processes of a node agree by file locks: one fetches a shard, the others wait for it. Above the size limit, or when the
disk is full, the shards that were opened longest ago go first; one that is in use stays readable, since its readers
hold it open, and gives its space back when they close it. Where the limit is below the size of a set, order.block_shards
spares fetching shards over and over. The cache folder may be removed at any time between runs.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.errors import ConfigError, DataError

ATTEMPTS = 2
"""Times that a shard is fetched before it counts as damaged at its source."""
CHUNK = 2**20


def default_cache_dir() -> Path:
    """Below the system's temporary folder (TMPDIR, where Slurm sets one), one for each user."""
    return Path(tempfile.gettempdir()) / f"brasyn_dist-{os.getuid()}"


class ShardCache:
    """Shards behind a URL, kept in `root`/<fingerprint>; all sets below `root` share its `limit` in bytes."""

    def __init__(self, url: str, root: Path, limit: int) -> None:
        self._url = url if "{}" in url else url.rstrip("/") + "/{}"
        self._root = root
        self._limit = limit
        self._folder = root

    def describe(self, name: str) -> str:
        return self._url.replace("{}", name)

    def use_set(self, fingerprint: str) -> None:
        self._folder = self._root / fingerprint[:16]
        try:
            # Patient data: nobody else's to read, also where the system's temporary folder is everybody's.
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: {error.strerror}; set data.cache_dir to a folder to write to"
            ) from None

    def read(self, name: str) -> bytes:
        return b"".join(_receive(self.describe(name)))

    def open(self, shard: ShardEntry) -> int:
        path = self._folder / shard.name
        try:
            kept = _open_kept(path, shard.size)
            if kept is None:
                with _locked(_lock_of(path)):
                    # Another process may have fetched it while this one waited for the lock.
                    kept = _open_kept(path, shard.size)
                    if kept is None:
                        kept = self._fetch(shard, path)
            return kept
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}; free some space, or set data.cache_dir to another folder"
            ) from None

    def _fetch(self, shard: ShardEntry, path: Path) -> int:
        """Fetch, verify, keep and open a shard, whose lock is held. What is not whole is removed."""
        part = _part_of(path)
        try:
            self._reserve(part, shard.size)
            self._download(shard, part)
            # Opened before it has its name: from then on others may remove it to make room.
            descriptor = os.open(part, os.O_RDONLY)
            _mark_used(descriptor)
            os.fsync(descriptor)
            part.replace(path)
            return descriptor
        finally:
            part.unlink(missing_ok=True)

    def _download(self, shard: ShardEntry, part: Path) -> None:
        url, problem = self.describe(shard.name), ""
        for _ in range(ATTEMPTS):
            try:
                found = _copy(_receive(url), part, shard.size)
            except DataError as error:
                problem = str(error)
                continue
            if found == (shard.size, shard.sha256):
                return
            problem = f"{url}: fetched {found[0]} bytes with sha256 {found[1]}, the index says {shard.size} and {shard.sha256}"
        raise DataError(f"{problem} (tried {ATTEMPTS} times); restore the shard at its source")

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for `size` bytes and take it, so that several fetches at a time do not exceed the limit."""
        part.unlink(missing_ok=True)
        while not self._try_reserve(part, size):
            time.sleep(0.05)  # the fetches under way hold the room; when they are done their shards may go

    def _try_reserve(self, part: Path, size: int) -> bool:
        with _locked(self._root / ".lock"):
            missing, under_way = self._evict(size)
            if missing > 0 and not under_way:
                raise ConfigError(
                    f"{self._root}: no room for a shard of {size} bytes, {missing} are missing; raise data.cache_gib, or "
                    "set data.cache_dir to a folder with more space"
                )
            if missing <= 0:
                with part.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            return missing <= 0

    def _evict(self, size: int) -> tuple[int, bool]:
        """Remove the shards that were used longest ago until `size` more bytes fit the limit and the disk.

        Returns how many bytes are still missing (0 or less: none), and whether fetches are under way.
        """
        for part in self._root.glob("*/.*.part"):
            _remove_abandoned(part)
        under_way = [_use(path)[1] for path in self._root.glob("*/.*.part")]
        kept = sorted((_use(path) for path in self._root.glob("*/*.tar")), reverse=True)
        used = sum(under_way) + sum(bytes_ for _, bytes_, _ in kept)
        limit = min(self._limit, used + shutil.disk_usage(self._root).free)
        while kept and used + size > limit:
            _, freed, path = kept.pop()
            path.unlink(missing_ok=True)
            used -= freed
        return used + size - limit, bool(under_way)


def _open_kept(path: Path, size: int) -> int | None:
    """Descriptor of a fetched shard, which is marked as used now; None if it is not there."""
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
    """Keep the time of last use as that of modification: file systems are mounted without access times."""
    os.utime(descriptor, ns=(time.time_ns(), time.time_ns()))


def _receive(url: str) -> Iterator[bytes]:
    """Content behind a URL. Raises DataError if it cannot be had to the end."""
    from webdataset.gopen import gopen  # costs seconds of imports, which local folders need not wait for

    try:
        with gopen(url, "rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except (OSError, ValueError) as error:
        raise DataError(f"{url}: cannot be fetched ({error})") from None


def _copy(chunks: Iterator[bytes], path: Path, limit: int) -> tuple[int, str]:
    """Write `chunks` to `path`; (bytes, sha256) of what came, which ends early once it is longer than `limit`."""
    digest, size = hashlib.sha256(), 0
    with path.open("r+b") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if size > limit:
                break
    return size, digest.hexdigest()


def _use(path: Path) -> tuple[int, int, Path]:
    """(time of last use, bytes, path); zeros if it has just gone."""
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
    """Remove a partial file if nobody is fetching it: its process was killed."""
    path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
    with suppress(BlockingIOError, FileNotFoundError), _locked(_lock_of(path), fcntl.LOCK_NB):
        part.unlink()


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[None]:
    """Hold an exclusive lock that other processes, and other threads of this one, see; the kernel frees it at exit."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)
