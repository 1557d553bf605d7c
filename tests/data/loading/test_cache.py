"""Shards behind URLs: fetched once for each node, verified, kept within a limit, and never incomplete."""

import collections
import fcntl
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brasyn_dist.common.files import sha256_of
from brasyn_dist.data.format.index import ShardIndex
from brasyn_dist.data.loading import cache, storage, transfer
from brasyn_dist.data.loading.loader import SliceStream
from brasyn_dist.data.loading.sampler import SampleOrder
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.errors import ConfigError, DataError
from tests.data.http_server import Server
from tests.data.shard_sets import write_set

GIB = 2**30


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSES", (0.01,))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return write_set(tmp_path_factory.mktemp("set"), train=6, slices=8, shards=4)


@pytest.fixture
def folder(local: ShardIndex) -> Path:
    assert local.storage is not None
    return Path(local.storage.location(""))


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


def all_pixels(index: ShardIndex) -> list[bytes]:
    selection = index.select("train")
    order = SampleOrder(0, selection.shard, 12)
    with SliceStream(selection, order, slice(0, 12), 0, 4, image_size=24, threads=3) as batches:
        return [batch.planes.numpy().tobytes() for batch in batches]


def kept(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*.tar")}


def nothing_half_written(root: Path) -> bool:
    return not [path for path in root.rglob("*") if path.name.endswith(".part")]


def read_start(index: ShardIndex, number: int) -> bytes:
    assert index.storage is not None
    descriptor = index.storage.open(index.shards[number])
    try:
        return os.pread(descriptor, 4096, 0)
    finally:
        os.close(descriptor)


def test_http_gives_the_same_batches_and_fetches_each_shard_once(
    tmp_path: Path, server: Server, local: ShardIndex, folder: Path
) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    assert index.fingerprint == local.fingerprint
    assert all_pixels(index) == all_pixels(local)
    again = open_shard_set(server.url + "/", cache_dir=tmp_path)
    assert all_pixels(again) == all_pixels(local)
    assert {n: c for n, c in server.requests.items() if n != "index.json"} == {
        f"train-0000{i}.tar": 1 for i in range(4)
    }
    files = list(tmp_path.rglob("*.tar"))
    assert {path.parent.name for path in files} == {local.fingerprint[:16]}
    assert all(sha256_of(path) == sha256_of(folder / path.name) for path in files)
    assert nothing_half_written(tmp_path)


@pytest.mark.parametrize(
    "pattern", ["pipe:cat {folder}/{{}}", "file:{folder}", "file://{folder}", "{folder}", "{folder}/"]
)
def test_pipes_file_urls_and_folders(tmp_path: Path, folder: Path, local: ShardIndex, pattern: str) -> None:
    location = pattern.format(folder=str(folder).rstrip("/"))
    assert all_pixels(open_shard_set(location, cache_dir=tmp_path)) == all_pixels(local)
    assert kept(tmp_path) == {f"train-0000{i}.tar" for i in range(4)}


def test_a_folder_is_copied_once_if_a_cache_folder_is_set(
    tmp_path: Path, folder: Path, local: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow network storage: each shard is read once per node, and after that only the index."""
    fetched: collections.Counter[str] = collections.Counter()
    real = storage.ShardFolder.chunks
    monkeypatch.setattr(
        storage.ShardFolder, "chunks", lambda self, name: (fetched.update([name]), real(self, name))[1]
    )
    remote = tmp_path / "remote"
    shutil.copytree(folder, remote)
    for _ in range(2):
        assert all_pixels(open_shard_set(remote, cache_dir=tmp_path / "cache")) == all_pixels(local)
    assert fetched == {f"train-0000{i}.tar": 1 for i in range(4)}
    assert nothing_half_written(tmp_path / "cache")
    for path in remote.glob("*.tar"):
        path.unlink()
    assert all_pixels(open_shard_set(remote, cache_dir=tmp_path / "cache")) == all_pixels(local)


def test_without_a_cache_folder_a_folder_is_read_directly(
    tmp_path: Path, local: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert local.storage is not None
    assert isinstance(open_shard_set(local.storage.location("")).storage, storage.ShardFolder)
    read_start(local, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flipped", "short", "absent"])
def test_damage_in_a_folder_is_found_when_it_is_copied(tmp_path: Path, folder: Path, damage: str) -> None:
    shutil.copytree(folder, tmp_path / "remote")
    path = tmp_path / "remote" / "train-00001.tar"
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    index = open_shard_set(tmp_path / "remote", cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: .*\(tried 2 times\); restore the shard"):
        read_start(index, 1)
    assert kept(tmp_path / "cache") == set() and nothing_half_written(tmp_path / "cache")


def test_braces_stand_for_the_file_name_in_any_url(tmp_path: Path, server: Server, local: ShardIndex) -> None:
    index = open_shard_set(server.url + "/{}?token=abc", cache_dir=tmp_path)
    assert all_pixels(index) == all_pixels(local)


def test_a_pipe_needs_its_braces() -> None:
    with pytest.raises(DataError, match=r"pipe:cat x: a pipe: command needs \{\}"):
        open_shard_set("pipe:cat x")


def test_default_folder_is_private_and_below_the_temporary_one(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    read_start(open_shard_set(server.url), 0)
    (root,) = tmp_path.iterdir()
    assert root.name == f"brasyn_dist-{os.getuid()}" and root.stat().st_mode & 0o777 == 0o700
    assert kept(root) == {"train-00000.tar"}


def spoil_first(times: int, how: Callable[[bytes], bytes]) -> Callable[[str, bytes], bytes]:
    left = collections.Counter({f"train-0000{i}.tar": times for i in range(4)})

    def spoil(name: str, data: bytes) -> bytes:
        left[name] -= 1
        return how(data) if left[name] >= 0 else data

    return spoil


DAMAGE = {
    "flipped": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "short": lambda data: data[:-1000],
    "long": lambda data: data + bytes(5000),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_download_is_tried_again(
    tmp_path: Path, server: Server, local: ShardIndex, kind: str
) -> None:
    server.spoil = spoil_first(1, DAMAGE[kind])
    assert all_pixels(open_shard_set(server.url, cache_dir=tmp_path)) == all_pixels(local)
    assert all(server.requests[f"train-0000{i}.tar"] == 2 for i in range(4))
    sizes = {shard.name: shard.size for shard in local.shards if shard.split == "train"}
    assert {path.name: path.stat().st_size for path in tmp_path.rglob("*.tar")} == sizes


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_at_the_source_is_an_error_and_leaves_nothing(
    tmp_path: Path, server: Server, kind: str
) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    server.spoil = spoil_first(99, DAMAGE[kind])
    shard = index.shards[2]
    with pytest.raises(DataError) as raised:
        read_start(index, 2)
    text = str(raised.value)
    assert (
        f"{server.url}/{shard.name}" in text
        and shard.sha256 in text
        and "restore the shard at its source" in text
    )
    assert server.requests[shard.name] == 2
    assert kept(tmp_path) == set() and nothing_half_written(tmp_path)


def test_an_error_of_the_stream_names_the_url(tmp_path: Path, server: Server) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    server.spoil = lambda name, data: None
    with pytest.raises(
        DataError, match=r"^http://\S+/train-\d+\.tar: cannot be fetched \(.*404.*attempts: 1"
    ):
        all_pixels(index)


def test_absent_sets_and_servers(tmp_path: Path, server: Server) -> None:
    server.spoil = lambda name, data: None
    with pytest.raises(DataError, match=rf"{re.escape(server.url)}/index\.json: cannot be fetched"):
        open_shard_set(server.url, cache_dir=tmp_path)
    with pytest.raises(DataError, match="cannot be fetched"):
        open_shard_set("http://127.0.0.1:9/set", cache_dir=tmp_path)
    with pytest.raises(DataError, match="cannot be fetched"):
        open_shard_set("pipe:exit 3 # {}", cache_dir=tmp_path)
    with pytest.raises(DataError, match="cannot be fetched"):
        open_shard_set("nosuchscheme://x", cache_dir=tmp_path)


def test_a_file_in_the_cache_that_was_cut_off_is_fetched_again(tmp_path: Path, server: Server) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    first = read_start(index, 1)
    (path,) = tmp_path.rglob("*.tar")
    os.truncate(path, 1000)
    assert read_start(index, 1) == first
    assert path.stat().st_size == index.shards[1].size


def test_what_a_killed_process_left_is_overwritten_or_removed(tmp_path: Path, server: Server) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    folder = tmp_path / index.fingerprint[:16]
    for number in (0, 3):
        (folder / f".train-0000{number}.tar.part").write_bytes(bytes(10_000_000))
    read_start(index, 0)
    assert kept(tmp_path) == {"train-00000.tar"} and nothing_half_written(tmp_path)


def test_the_longest_unused_goes_first(tmp_path: Path, server: Server) -> None:
    sizes = [shard.size for shard in open_shard_set(server.url, cache_dir=tmp_path).shards]
    index = open_shard_set(server.url, cache_dir=tmp_path, cache_gib=(sum(sizes[:4]) - 1) / GIB)
    for number in (0, 1, 2):
        read_start(index, number)
    read_start(index, 0)
    read_start(index, 3)
    assert kept(tmp_path) == {"train-00000.tar", "train-00002.tar", "train-00003.tar"}
    read_start(index, 1)
    assert kept(tmp_path) == {"train-00000.tar", "train-00003.tar", "train-00001.tar"}


def test_other_sets_count_and_go_too(tmp_path: Path, server: Server) -> None:
    old = write_set(tmp_path / "old", train=3, shards=1)
    url = f"pipe:cat {tmp_path}/old/{{}}"
    root = tmp_path / "cache"
    read_start(open_shard_set(url, cache_dir=root), 0)
    index = open_shard_set(server.url, cache_dir=root, cache_gib=(old.shards[0].size + 10) / GIB)
    read_start(index, 0)
    assert [path.parent.name for path in root.rglob("*.tar")] == [index.fingerprint[:16]]


def test_a_shard_in_use_survives_its_removal(tmp_path: Path, server: Server, folder: Path) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    tight = open_shard_set(server.url, cache_dir=tmp_path, cache_gib=(index.shards[1].size + 10) / GIB)
    assert index.storage is not None
    descriptor = index.storage.open(index.shards[0])
    read_start(tight, 1)
    assert kept(tmp_path) == {"train-00001.tar"}
    size = index.shards[0].size
    assert os.pread(descriptor, size, 0) == (folder / "train-00000.tar").read_bytes()
    os.close(descriptor)


def test_a_cache_smaller_than_the_set_still_gives_every_batch(
    tmp_path: Path, server: Server, local: ShardIndex
) -> None:
    limit = max(shard.size for shard in local.shards) * 1.1
    index = open_shard_set(server.url, cache_dir=tmp_path, cache_gib=limit / GIB)
    with pytest.MonkeyPatch.context() as patch:
        # One descriptor at a time: the shards are fetched over and over.
        patch.setattr("brasyn_dist.data.loading.reader.resource.getrlimit", lambda which: (4, 4))
        assert all_pixels(index)[0] == all_pixels(local)[0]
    assert len(kept(tmp_path)) <= 1


def test_a_shard_larger_than_the_limit_is_an_error(tmp_path: Path, server: Server) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path, cache_gib=1000 / GIB)
    with pytest.raises(
        ConfigError, match=r"no room for a shard of \d+ bytes, \d+ are missing; raise data\.cache_gib"
    ):
        read_start(index, 0)
    assert kept(tmp_path) == set() and nothing_half_written(tmp_path)


def test_a_full_disk_makes_old_shards_go(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    read_start(index, 0)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda path: usage._replace(free=index.shards[1].size - 1)
    )
    read_start(index, 1)
    assert kept(tmp_path) == {"train-00001.tar"}
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=0))
    (tmp_path / index.fingerprint[:16] / "train-00001.tar").unlink()
    with pytest.raises(ConfigError, match=r"no room for a shard.*data\.cache_dir"):
        read_start(index, 1)


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path, server: Server) -> None:
    """A file size limit of the kernel replaces a full disk."""
    index = open_shard_set(server.url, cache_dir=tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (index.shards[0].size // 2, limits[1]))
    try:
        with pytest.raises(
            ConfigError, match=r"train-00000\.tar: File too large; free some space, or set data\.cache_dir"
        ):
            read_start(index, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(tmp_path) == set() and nothing_half_written(tmp_path)
    assert read_start(index, 0)


def test_a_cache_folder_that_cannot_be(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"set data\.cache_dir to a folder to write to"):
        open_shard_set(server.url, cache_dir=tmp_path / "file" / "cache")


def test_a_fetch_waits_for_the_one_under_way(tmp_path: Path, server: Server) -> None:
    index = open_shard_set(server.url, cache_dir=tmp_path)
    lock = (tmp_path / index.fingerprint[:16] / ".train-00000.tar.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another process that is fetching it
    done: list[bytes] = []
    thread = threading.Thread(target=lambda: done.append(read_start(index, 0)))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and server.requests["train-00000.tar"] == 0
    lock.close()  # as when that process is killed: the next one fetches
    thread.join(10)
    assert len(done) == 1 and server.requests["train-00000.tar"] == 1


def _read_all(url: str, cache_dir: str) -> list[bytes]:
    return all_pixels(open_shard_set(url, cache_dir=cache_dir))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["url", "folder"])
def test_processes_of_a_node_fetch_each_shard_once(
    tmp_path: Path, server: Server, folder: Path, local: ShardIndex, kind: str
) -> None:
    expected = all_pixels(local)
    location = server.url if kind == "url" else str(folder)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.starmap(_read_all, [(location, str(tmp_path))] * 4, chunksize=1)
    assert all(result == expected for result in results)
    assert kept(tmp_path) == {f"train-0000{i}.tar" for i in range(4)}
    if kind == "url":
        assert {n: c for n, c in server.requests.items() if n != "index.json"} == {
            f"train-0000{i}.tar": 1 for i in range(4)
        }
    assert nothing_half_written(tmp_path)
