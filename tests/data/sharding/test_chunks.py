"""Sets with chunks: lossless, readable by others, rebuilt from the tars, equal for any number of workers."""

import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zstandard

from brasyn_dist.cli.shard import main
from brasyn_dist.data.format.chunks import select_chunks
from brasyn_dist.data.format.contents import contents_summary
from brasyn_dist.data.format.index import ShardIndex, rebuild_index
from brasyn_dist.data.format.metadata import KINDS
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.chunking import chunk_box
from tests.data.case_files import save
from tests.data.chunk_sets import (
    HELD_OUT,
    NAMES,
    SHAPE,
    SIDE,
    images_of,
    labels_of,
    read_patches,
    stage1_of,
    write_cases,
    write_chunk_set,
    write_stage1,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Slices, chunks and stage-1 volumes of four cases."""
    return write_chunk_set(tmp_path_factory.mktemp("chunks"), stage1=True)


@pytest.fixture(scope="module")
def folder(index: ShardIndex) -> Path:
    return Path(index.storage.location("index.json")).parent


def test_the_chunks_in_the_tars_are_the_volumes(index: ShardIndex, folder: Path) -> None:
    """Read by webdataset and numpy alone; chunks that are not stored are background."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    volumes = {name: np.zeros((9 if name != NAMES[-1] else 8, *SHAPE), np.int16) for name in NAMES}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        facts = json.loads(sample["json"])
        if facts["view"] == "chunk":
            data = zstandard.ZstdDecompressor().decompress(sample["npy.zst"])
            planes = np.load(io.BytesIO(data))
            volumes[facts["case"]][:, *chunk_box(facts["index"], SHAPE, SIDE)] = planes
            assert sample["__key__"].endswith(f"{facts['case']}/chunk/{facts['index']:03d}")
            assert facts["brain"] == np.count_nonzero((planes[:4] > 0).any(0))
    for name, volume in volumes.items():
        np.testing.assert_array_equal(volume[:4], images_of(name))
        np.testing.assert_array_equal(volume[4:8], stage1_of(name))
        if name != NAMES[-1]:
            np.testing.assert_array_equal(volume[8], labels_of(name))


def test_the_index_is_rebuilt_from_the_tars(index: ShardIndex, folder: Path) -> None:
    rebuilt = rebuild_index(folder)
    assert rebuilt.fingerprint == index.fingerprint
    assert rebuilt.to_json() == (folder / "index.json").read_text()
    assert rebuilt.header.stage1 and rebuilt.header.chunk == SIDE
    assert {case.shape for case in rebuilt.header.cases} == {SHAPE}


def test_slices_are_those_of_a_set_without_chunks(index: ShardIndex, tmp_path: Path) -> None:
    plain = write_chunk_set(tmp_path, chunks=None, stage1=False)
    for views in ((), ("axial",), ("sagittal", "coronal")):
        ours, theirs = index.select("train", views), plain.select("train", views)
        assert [ours.key(i) for i in range(len(ours))] == [theirs.key(i) for i in range(len(theirs))]
        for name in ("case", "size", "tumour_pixels", "shard"):
            np.testing.assert_array_equal(ours.column(name), theirs.column(name))
    assert plain.header.to_dict()["version"] == 1 and index.header.to_dict()["version"] == 2
    assert "shape" not in plain.header.to_dict()["cases"]


def test_chunks_are_in_shards_of_their_own_and_those_of_a_case_in_one(index: ShardIndex) -> None:
    view, shard, case = (index.columns[name] for name in ("view", "shard", "case"))
    is_chunk = view == KINDS.index("chunk")
    assert not set(shard[is_chunk]) & set(shard[~is_chunk])
    for number in range(len(NAMES)):
        assert len(set(shard[is_chunk & (case == number)])) == 1
    assert "chunks of 16 voxels with stage-1 volumes" in contents_summary(index)


def test_chunks_without_slices(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    arguments = [str(write_cases(tmp_path)), "--out", str(out), "--no-slices", "--chunks", "8"]
    assert main([*arguments, "--workers", "1", "--codec", "npy"]) == 0
    index = open_shard_set(out)
    assert set(index.columns["view"]) == {KINDS.index("chunk")} and index.header.chunk == 8
    with pytest.raises(DataError, match="no slices; shard the cases without --no-slices"):
        index.select("train", ("axial",))
    held_out = select_chunks(index, "val")
    whole = read_patches(held_out, [0], [(0, 0, 0)], SHAPE)
    np.testing.assert_array_equal(whole.volumes[0].numpy(), images_of(held_out.case(0).name))
    assert whole.stage1 is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--no-slices"], "--no-slices needs --chunks"),
        (["--chunks", "8", "--no-slices", "--views", "axial"], "excludes --views"),
        (["--stage1", "."], "--stage1 is stored in chunks"),
        (["--chunks", "4"], "greater than or equal to 8"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        assert main([".", "--out", str(tmp_path / "s"), *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_a_set_without_chunks_is_named(tmp_path: Path) -> None:
    plain = write_chunk_set(tmp_path, chunks=None)
    with pytest.raises(DataError, match="no chunks; shard the cases with --chunks 32"):
        select_chunks(plain, "train")


def test_a_case_without_stage1_is_named(tmp_path: Path) -> None:
    cohort, stage1 = write_cases(tmp_path), write_stage1(tmp_path / "stage1")
    (stage1 / f"{NAMES[1]}-t2f.nii.gz").unlink()
    options = ShardOptions(chunks=SIDE, stage1=stage1, minimum_foreground=300)
    with pytest.raises(
        DataError, match=f"{NAMES[1]}: no stage-1 volume of t2f; expected {NAMES[1]}-t2f.nii.gz"
    ):
        make_shards([cohort], tmp_path / "shards", options)


def test_a_folder_of_stage1_volumes_that_does_not_exist_is_named_at_once(tmp_path: Path) -> None:
    options = ShardOptions(chunks=SIDE, stage1=tmp_path / "none", minimum_foreground=300)
    with pytest.raises(DataError, match=f"--stage1 {tmp_path / 'none'}: no such folder; give .*cross-fit"):
        make_shards([write_cases(tmp_path)], tmp_path / "shards", options)


def test_stage1_volumes_of_a_wider_type(tmp_path: Path) -> None:
    """The images fit int16, one stage-1 volume does not: the whole set is int32."""
    cohort, stage1 = write_cases(tmp_path), write_stage1(tmp_path / "stage1")
    bright = images_of(NAMES[0])[1].astype(np.int32) * 100
    save(stage1 / f"{NAMES[0]}-t1n.nii.gz", bright, dtype=np.int32)
    options = ShardOptions(views=(), chunks=SIDE, stage1=stage1, validation_fraction=0)
    chunks = select_chunks(make_shards([cohort], tmp_path / "shards", options), "train")
    batch = read_patches(chunks, [0], [(0, 0, 0)], SHAPE)
    np.testing.assert_array_equal(batch.stage1[0, 1].numpy(), bright)
    np.testing.assert_array_equal(batch.volumes[0].numpy(), images_of(NAMES[0]))


def test_stage1_volumes_of_another_grid_are_refused(tmp_path: Path) -> None:
    cohort, stage1 = write_cases(tmp_path), write_stage1(tmp_path / "stage1")
    path = stage1 / f"{NAMES[0]}-t2w.nii.gz"
    save(path, np.ones((36, 40, 29)))
    options = ShardOptions(views=(), chunks=SIDE, stage1=stage1, validation_fraction=0)
    with pytest.raises(DataError, match=rf"{path}: shape .* differs"):
        make_shards([cohort], tmp_path / "shards", options)


def test_an_empty_stage1_volume_is_refused(tmp_path: Path) -> None:
    cohort, stage1 = write_cases(tmp_path), write_stage1(tmp_path / "stage1")
    path = stage1 / f"{NAMES[0]}-t2w.nii.gz"
    save(path, np.zeros_like(images_of(NAMES[0])[0]))
    options = ShardOptions(views=(), chunks=SIDE, stage1=stage1, validation_fraction=0)
    with pytest.raises(DataError, match=f"{path}: no intensity is above 0"):
        make_shards([cohort], tmp_path / "shards", options)


def test_other_stage1_volumes_are_another_set(folder: Path, tmp_path: Path) -> None:
    options = ShardOptions(
        chunks=SIDE, validation_cases=(HELD_OUT,), minimum_foreground=300, samples_per_shard=60
    )
    with pytest.raises(DataError, match="holds a shard set made otherwise .*stage1: there"):
        make_shards([folder.parent / "gli"], folder, options)
