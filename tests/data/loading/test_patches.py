"""The stream of patches: lossless, the same for any number of ranks, threads and restarts."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.config import PatchConfig
from brasyn_dist.data.format.chunks import ChunkSelection, select_chunks
from brasyn_dist.data.loading.patches import PatchBatch, PatchOrder, PatchStream
from brasyn_dist.data.loading.reader import SampleReader
from brasyn_dist.data.loading.sampler import rank_rows
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.errors import DataError
from tests.data.chunk_sets import (
    HELD_OUT,
    NAMES,
    SHAPE,
    cut,
    images_of,
    labels_of,
    read_patches,
    stage1_of,
    write_chunk_set,
)
from tests.data.http_server import Server

G = 6
SIZE = (20, 12, 17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("patches")
    write_chunk_set(root, stage1=True, views=())
    return root / "shards"


@pytest.fixture(scope="module")
def chunks(folder: Path) -> ChunkSelection:
    """The three training cases."""
    return select_chunks(open_shard_set(folder), "train")


def stream(
    chunks: ChunkSelection,
    start: int = 0,
    stop: int = 5,
    rank: int = 0,
    world: int = 1,
    tumour_share: float = 0.5,
    size: tuple[int, int, int] = SIZE,
    **options: int,
) -> PatchStream:
    order = PatchOrder(PatchConfig(size=size, tumour_share=tumour_share), 5, chunks, G)
    return PatchStream(chunks, order, rank_rows(G, rank, world), start, stop, **options)


def content(batch: PatchBatch) -> list[tuple[int, str, bytes]]:
    """Number in the global batch, key and all values of each row."""
    fields = (batch.volumes, batch.stage1, batch.labels, batch.has_labels, batch.tumour_type, batch.medians)
    return [
        (batch.index * G + batch.rows.start + i, key, b"".join(f[i].numpy().tobytes() for f in fields))
        for i, key in enumerate(batch.keys)
    ]


def check(batch: PatchBatch, chunks: ChunkSelection, size: tuple[int, int, int]) -> None:
    """Each row is the part of the volumes that its key names."""
    for row, key in enumerate(batch.keys):
        name, corner = key.split("/")[0], batch.corners[row].tolist()
        assert key == f"{name}/{','.join(map(str, corner))}"
        assert chunks.case(int(batch.cases[row])).name == name
        np.testing.assert_array_equal(batch.volumes[row].numpy(), cut(images_of(name), corner, size))
        np.testing.assert_array_equal(batch.stage1[row].numpy(), cut(stage1_of(name), corner, size))
        np.testing.assert_array_equal(batch.labels[row].numpy(), cut(labels_of(name), corner, size))
        assert bool(batch.has_labels[row]) == (name != NAMES[-1])
        assert int(batch.tumour_type[row]) == (1 if "MET" in name else 0)
        medians = [np.median(image[image > 0]) for image in images_of(name)]
        assert batch.medians[row].tolist() == pytest.approx(medians, abs=0.5)


@pytest.mark.parametrize("size", [SIZE, (1, 1, 1), (16, 16, 16), (40, 33, 28)])
def test_patches_are_parts_of_the_volumes(chunks: ChunkSelection, size: tuple[int, int, int]) -> None:
    for batch in stream(chunks, stop=3, size=size):
        assert batch.volumes.shape == (G, 4, *size) and batch.volumes.dtype == torch.int16
        check(batch, chunks, size)


@pytest.mark.parametrize("corner", [(0, 0, 0), (-5, -30, 3), (30, 35, 20), (100, 0, 0), (-15, -15, -15)])
def test_any_patch_is_read_also_beyond_the_volume(chunks: ChunkSelection, corner: tuple[int, ...]) -> None:
    check(read_patches(chunks, [0, 2], [corner] * 2, SIZE), chunks, SIZE)


def test_http_gives_the_same_patches_and_fetches_each_shard_once(
    chunks: ChunkSelection, folder: Path, tmp_path: Path
) -> None:
    server = Server(folder)
    try:
        remote = select_chunks(open_shard_set(server.url, cache_dir=tmp_path), "train")
        for _ in range(2):
            with stream(remote) as far, stream(chunks) as near:
                assert [content(b) for b in far] == [content(b) for b in near]
    finally:
        server.stop()
    assert {count for name, count in server.requests.items() if name.endswith(".tar")} == {1}


def test_whole_volumes_are_read(folder: Path) -> None:
    held_out = select_chunks(open_shard_set(folder), "val")
    assert held_out.case(0).name == HELD_OUT and held_out.shapes.tolist() == [list(SHAPE)]
    batch = read_patches(held_out, [0], [(0, 0, 0)], SHAPE)
    np.testing.assert_array_equal(batch.volumes[0].numpy(), images_of(HELD_OUT))
    assert batch.index == -1


@pytest.mark.parametrize("world", [2, 3, 6])
def test_all_worlds_see_the_same_global_batches(chunks: ChunkSelection, world: int) -> None:
    alone = list(chain.from_iterable(map(content, stream(chunks))))
    parts = [content(b) for rank in range(world) for b in stream(chunks, rank=rank, world=world)]
    assert sorted(chain.from_iterable(parts)) == alone


@pytest.mark.parametrize("options", [{"threads": 1, "prefetch": 1}, {"threads": 5, "prefetch": 9}])
def test_threads_and_start_do_not_change_anything(chunks: ChunkSelection, options: dict[str, int]) -> None:
    plain = [content(batch) for batch in stream(chunks, stop=8)]
    for start in (0, 3, 7):
        assert [content(batch) for batch in stream(chunks, start, 8, **options)] == plain[start:]


def test_each_case_is_in_each_epoch(chunks: ChunkSelection) -> None:
    order = PatchOrder(PatchConfig(), 3, chunks, G)
    cases = np.concatenate([order.draw(k)[0] for k in range(4)])
    for epoch in cases.reshape(-1, len(chunks)):
        assert sorted(epoch) == [0, 1, 2]
    assert order.epoch(3) == 6


@pytest.mark.parametrize("tumour_share", [0.0, 1.0])
def test_the_centre_is_tumour_or_brain(chunks: ChunkSelection, tumour_share: float) -> None:
    """With patches of one voxel, the patch is the centre. All voxels are equally likely."""
    centres: dict[str, list[tuple[int, ...]]] = {}
    for batch in stream(chunks, stop=100, tumour_share=tumour_share, size=(1, 1, 1)):
        for row, key in enumerate(batch.keys):
            name = key.split("/")[0]
            assert batch.volumes[row].any()
            if tumour_share and name != NAMES[-1]:
                assert batch.labels[row].all()
            centres.setdefault(name, []).append(tuple(batch.corners[row].tolist()))
    for name, places in centres.items():
        wanted = labels_of(name) > 0 if tumour_share and name != NAMES[-1] else images_of(name).any(0)
        assert len(set(places)) > 0.9 * min(len(places), wanted.sum() / 10)
        spread = np.std(np.argwhere(wanted), axis=0)
        np.testing.assert_allclose(np.std(places, axis=0), spread, rtol=0.15)


def test_the_share_of_tumours_is_as_given(chunks: ChunkSelection) -> None:
    order = PatchOrder(PatchConfig(tumour_share=0.3), 5, chunks, 50)
    tumour = np.concatenate([order.draw(k)[1] for k in range(20)])
    assert tumour.mean() == pytest.approx(0.3, abs=0.05)


def test_only_the_chunks_of_the_patch_are_read(
    chunks: ChunkSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = SampleReader.read
    monkeypatch.setattr(SampleReader, "read", lambda self, *a: read.append(a[0]) or real(self, *a))
    read_patches(chunks, [0], [(15, 15, 10)], (2, 2, 2))
    assert len(read) == 4  # of a grid of 3 x 3 x 2 chunks of 16 voxels
    assert {int(chunks.selection.column("index")[i]) for i in read} == {0, 2, 6, 8}


# ---- damage


def damage(folder: Path, key: str) -> None:
    index = open_shard_set(folder)
    (row,) = index.rows_of([key])
    path = folder / index.shards[index.columns["shard"][row]].name
    data = bytearray(path.read_bytes())
    data[index.columns["offset"][row] + index.columns["size"][row] // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_chunk_is_named_and_its_case_can_be_left_out(tmp_path: Path) -> None:
    write_chunk_set(tmp_path, views=())
    folder, key = tmp_path / "shards", f"{NAMES[0]}/chunk/006"
    damage(folder, key)
    index = open_shard_set(folder)
    with pytest.raises(
        DataError, match=rf"sample {key} at byte \d+ of train-00000.tar: .*quarantine=\[{key}"
    ):
        list(stream(select_chunks(index, "train"), stop=20, size=(32, 32, 24)))
    rest = select_chunks(index, "train", quarantine=[key])
    assert [rest.case(i).name for i in range(len(rest))] == [NAMES[1], NAMES[3]]
    names = {key.split("/")[0] for b in stream(rest, stop=4, size=(32, 32, 24)) for key in b.keys}
    assert names == {NAMES[1], NAMES[3]}


def test_a_chunk_of_another_shape_is_an_error(chunks: ChunkSelection, folder: Path) -> None:
    other = select_chunks(open_shard_set(folder), "train")
    other.shapes[:, 0] -= 1
    with pytest.raises(DataError, match="but the index says int16"):
        read_patches(other, [0], [(16, 0, 0)], SIZE)


def test_an_order_of_other_length_is_refused(chunks: ChunkSelection, folder: Path) -> None:
    held_out = select_chunks(open_shard_set(folder), "val")
    order = PatchOrder(PatchConfig(), 0, held_out, G)
    with pytest.raises(DataError, match="order of 1 cases does not fit a selection of 3"):
        PatchStream(chunks, order, slice(0, G), 0, 1)
