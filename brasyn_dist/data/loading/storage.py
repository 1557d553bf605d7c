"""Location of shards: a folder, or a URL that webdataset opens; with or without the node-local cache.

open_storage("/data/shards")                      --> ShardFolder: shards are opened where they are
open_storage("/nfs/shards", cache_dir="/scratch") --> ShardCache (cache.py): copied once per node
open_storage("https://host/shards")               --> ShardCache, in a temporary folder by default
open_storage("pipe:ssh host cat shards/{}")
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from brasyn_dist.common.logs import redact
from brasyn_dist.data.format.index import INDEX_NAME, ShardIndex, ShardStorage
from brasyn_dist.data.format.tar_shards import ShardEntry
from brasyn_dist.data.loading.cache import ShardCache, default_cache_dir
from brasyn_dist.data.loading.transfer import CHUNK, url_chunks, with_retries
from brasyn_dist.errors import DataError

_URL = re.compile(r"[a-z][a-z0-9+.-]+:", re.I)


def open_shard_set(
    location: Path | str, cache_dir: Path | str | None = None, cache_gib: float = 200.0
) -> ShardIndex:
    """Index of the shard set at `location`, with its storage. Arguments: see `open_storage`.

    Raises:
        DataError: There is no index.json, it was changed or damaged, or another version wrote it.
    """
    storage = open_storage(location, cache_dir, cache_gib)
    index = ShardIndex.from_json(storage.read(INDEX_NAME), storage.location(INDEX_NAME), storage)
    storage.use_set(index.fingerprint)
    return index


def open_storage(
    location: Path | str, cache_dir: Path | str | None = None, cache_gib: float = 200.0
) -> ShardStorage:
    """Storage of the shard set at `location`.

    Args:
        location: A folder, a URL, or a URL or `pipe:` command with `{}` for the file name.
        cache_dir: Node-local folder for copies of shards; None: shards of a folder are not copied, and shards
            behind a URL are stored in a folder below the system's temporary folder.
        cache_gib: Largest size of the cache, in GiB.
    """
    text = str(location)
    limit = int(cache_gib * 2**30)
    if Path(text).is_dir() or not _URL.match(text) or text.startswith("file:"):
        folder = ShardFolder(Path(re.sub("^file:(//)?", "", text)))
        return folder if cache_dir is None else ShardCache(folder, Path(cache_dir), limit)
    if text.startswith("pipe:") and "{}" not in text:
        raise DataError(f"{text}: a pipe: command needs {{}} where the name of the file belongs")
    return ShardCache(ShardUrl(text), Path(cache_dir or default_cache_dir()), limit)


class ShardFolder:
    """Shards in a folder of a mounted file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def location(self, name: str) -> str:
        """See ShardStorage."""
        return str(self._folder / name)

    def use_set(self, fingerprint: str) -> None:
        """Nothing depends on the fingerprint."""

    def read(self, name: str) -> bytes:
        """See ShardStorage."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self._folder}: no readable {name} ({error.strerror}); give a folder with a "
                "complete shard set"
            ) from None

    def chunks(self, name: str) -> Iterator[bytes]:
        """See ShardOrigin."""
        try:
            with (self._folder / name).open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise DataError(f"{self._folder / name}: cannot be read ({error.strerror})") from None

    def open(self, shard: ShardEntry) -> int:
        """See ShardStorage."""
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


class ShardUrl:
    """Shards behind a URL. They cannot be opened, only copied to the cache."""

    def __init__(self, url: str) -> None:
        self._url = url if "{}" in url else url.rstrip("/") + "/{}"

    def location(self, name: str) -> str:
        """See ShardStorage."""
        return redact(self._url.replace("{}", name))

    def read(self, name: str) -> bytes:
        """See ShardOrigin."""
        return with_retries(lambda: b"".join(self.chunks(name)), self.location(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """See ShardOrigin."""
        return url_chunks(self._url.replace("{}", name))
