"""Where shards are read from: a folder, or any URL that webdataset opens, by way of a node-local cache.

open_source("/data/shards")                   --> LocalFolder: opened where they lie
open_source("https://host/shards")            --> ShardCache (cache.py): fetched once a node, verified, kept
open_source("pipe:ssh host cat shards/{}")
"""

import os
import re
from pathlib import Path
from typing import Protocol

from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.data.loading.cache import ShardCache, default_cache_dir
from brasyn_dist.errors import DataError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:", re.I)


class ShardSource(Protocol):
    """The files of one shard set."""

    def describe(self, name: str) -> str:
        """Path or URL of a file, for messages."""
        ...

    def read(self, name: str) -> bytes:
        """A small file (index.json), whole, never cached. Raises DataError."""
        ...

    def use_set(self, fingerprint: str) -> None:
        """Tell which set this is, once its index is known."""
        ...

    def open(self, shard: ShardEntry) -> int:
        """File descriptor of a shard of the right size, for `os.pread`; the caller closes it.

        Raises DataError if the shard is damaged or not there, ConfigError if there is no place to keep it.
        """
        ...


def open_source(
    location: Path | str, cache_dir: Path | str | None = None, cache_gib: float = 200.0
) -> ShardSource:
    """Source of the shard set at `location`: a folder, a URL, or a URL or `pipe:` command with `{}` for the file name.

    Fetched shards are kept below `cache_dir` (None: a folder below the system's temporary one), at most `cache_gib`.
    """
    text = str(location)
    if Path(text).is_dir() or not _URL.match(text):
        return LocalFolder(Path(text))
    if text.startswith("file:"):
        return LocalFolder(Path(re.sub("^file:(//)?", "", text)))
    if text.startswith("pipe:") and "{}" not in text:
        raise DataError(f"{text}: a pipe: command needs {{}} where the name of the file belongs")
    return ShardCache(text, Path(cache_dir or default_cache_dir()), int(cache_gib * 2**30))


class LocalFolder:
    """Shards in a folder of a mounted file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self, name: str) -> str:
        return str(self._folder / name)

    def use_set(self, fingerprint: str) -> None:
        pass

    def read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self._folder}: no readable {name} ({error.strerror}); give a folder that "
                "tools/shard_dataset.py has written to the end"
            ) from None

    def open(self, shard: ShardEntry) -> int:
        path = self._folder / shard.name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        size = os.fstat(descriptor).st_size
        if size != shard.size:
            os.close(descriptor)
            raise DataError(f"{path}: {size} bytes instead of {shard.size}")
        return descriptor
