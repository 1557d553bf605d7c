"""Whole shard sets: their content, and that their bytes depend on the input only."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from brasyn_dist.brats import VIEWS
from brasyn_dist.data.format.codec import decode_slice
from brasyn_dist.data.format.index import rebuild_index
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.sharding.write_shards import make_shards
from brasyn_dist.errors import DataError
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from tests.data.case_files import MODALITIES, NAMES_2021, brain, write_case
from tests.data.shard_runs import OPTIONS, SEEDS, UNLABELLED, contents, expected_slices, read_all


def test_every_slice_is_stored_once_and_losslessly(made):
    found, expected = read_all(made), expected_slices()
    assert found.keys() == expected.keys()
    for key, planes in expected.items():
        assert found[key].dtype == np.int16
        np.testing.assert_array_equal(found[key], planes)
    assert len(found[f"{UNLABELLED}/axial/014"]) == 4, "an absent segmentation is absent, not zeros"


def test_statistics_are_those_of_the_training_voxels(made):
    index = open_shard_set(made)
    training = [c.name for c in index.header.cases if c.split == "train"]
    statistics = Statistics.load(made / "statistics.json")
    assert statistics.cases == len(training) == statistics.from_dict(index.header.statistics).cases
    for number, modality in enumerate(MODALITIES):
        volumes = [brain(SEEDS[name])[0][modality] for name in training]
        voxels = np.concatenate([v[v > 0] for v in volumes]).astype(float)
        clip_max = np.percentile(voxels, 99.5)
        clipped = np.minimum(voxels, clip_max)
        found = [statistics.column(c)[number] for c in ("clip_max", "mean", "std", "voxels")]
        assert found == pytest.approx([clip_max, clipped.mean(), clipped.std(), len(voxels)], rel=1e-12)


def test_the_medians_of_every_case_are_noted(made):
    for case in open_shard_set(made).header.cases:
        volumes = [brain(SEEDS[case.name])[0][modality] for modality in MODALITIES]
        assert case.medians == tuple(int(np.percentile(v[v > 0], 50, method="lower")) for v in volumes)


def test_patients_are_not_cut_and_cohorts_recorded(made):
    index = open_shard_set(made)
    splits = {c.name: c.split for c in index.header.cases}
    assert splits["BraTS-GLI-00000-000"] == splits["BraTS-GLI-00000-001"]
    assert {c.cohort for c in index.header.cases if c.split == "val"} == {"train_gli", "train_met"}
    assert all(c.cohort == ("train_gli" if "GLI" in c.name else "train_met") for c in index.header.cases)
    assert [c.name for c in index.header.cases if not c.segmentation] == [UNLABELLED]


def test_tumour_pixels_are_counted(made):
    index, expected = open_shard_set(made), expected_slices()
    for row in range(len(index)):
        planes = expected[index.key(row)]
        assert index.columns["tumour_pixels"][row] == ((planes[4] > 0).sum() if len(planes) == 5 else 0)


def test_a_sequential_reader_gets_mixed_patients_and_views(made):
    index = open_shard_set(made)
    training = sum(c.split == "train" for c in index.header.cases)
    for shard in index.shards:
        if shard.split == "train" and len(shard) == OPTIONS.samples_per_shard:
            first = shard.columns[:20]
            assert len(set(first[:, 0])) >= training - 1
            assert len(set(first[:, 1])) == len(VIEWS)
    sizes = [len(s) for s in index.shards if s.split == "train"]
    assert set(sizes[:-1]) == {40} and 0 < sizes[-1] <= 40


def test_any_number_of_workers_writes_the_same_bytes(made, cohorts, tmp_path):
    make_shards(cohorts, tmp_path / "three", OPTIONS, workers=3)
    assert contents(tmp_path / "three") == contents(made)


def test_place_and_order_of_the_cohorts_do_not_matter(made, cohorts, tmp_path):
    for cohort in cohorts:
        shutil.copytree(cohort, tmp_path / cohort.name)
    make_shards([tmp_path / "train_met", tmp_path / "train_gli"], tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(made)


def test_another_seed_gives_another_order(made, cohorts, tmp_path):
    index = make_shards(cohorts, tmp_path / "out", replace(OPTIONS, seed=6))
    assert [index.key(i) for i in range(9)] != [open_shard_set(made).key(i) for i in range(9)]


@pytest.mark.parametrize(
    "form", [{"ras": True}, {"names": NAMES_2021, "enhancing": 4}, {"suffix": ".nii"}, {"dtype": np.float32}]
)
def test_the_same_brain_gives_the_same_shards(tmp_path, form):
    """RAS order, old names and labels, no compression, float headers."""
    out = {}
    for kind, how in (("plain", {}), ("other", form)):
        for number in range(2):
            write_case(tmp_path / kind / "gli", f"case-{number}", number, **how)
        out[kind] = make_shards([tmp_path / kind / "gli"], tmp_path / f"{kind}-shards", OPTIONS)
    assert read_all(tmp_path / "plain-shards").keys() == read_all(tmp_path / "other-shards").keys()
    for one, other in zip(out["plain"].shards, out["other"].shards, strict=True):
        np.testing.assert_array_equal(one.columns[:, :3], other.columns[:, :3])
    first, second = read_all(tmp_path / "plain-shards"), read_all(tmp_path / "other-shards")
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert out["plain"].header.statistics == out["other"].header.statistics


def test_tar_and_webdataset_read_the_set(made):
    import webdataset

    expected = expected_slices()
    listed = []
    for path in sorted(made.glob("train-*.tar")):
        done = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
        listed += done.stdout.split()
    stored = webdataset.WebDataset([str(p) for p in sorted(made.glob("train-*.tar"))], shardshuffle=False)
    keys = []
    for sample in stored:
        keys.append(sample["__key__"])
        np.testing.assert_array_equal(decode_slice(sample["npy.zst"], "npy.zst"), expected[keys[-1]])
    assert listed == [f"{key}.{kind}" for key in keys for kind in ("npy.zst", "json")]
    training = {c.name for c in open_shard_set(made).header.cases if c.split == "train"}
    assert sorted(keys) == sorted(key for key in expected if key.split("/")[0] in training)


def test_the_index_is_rebuilt_from_the_tars(made, tmp_path):
    for path in made.glob("*.tar"):
        shutil.copy(path, tmp_path)
    rebuild_index(tmp_path).save(tmp_path)
    assert contents(tmp_path) == contents(made)


def test_one_value_beyond_int16_makes_the_set_int32(tmp_path):
    import nibabel

    folder = write_case(tmp_path / "gli", "wide", 0)
    image = nibabel.load(folder / "wide-t1c.nii.gz")
    array = np.asarray(image.dataobj).astype(np.int32)
    array[18, 20, 14] = 40_000
    nibabel.save(nibabel.Nifti1Image(array, image.affine), folder / "wide-t1c.nii.gz")
    index = make_shards([tmp_path / "gli"], tmp_path / "out", replace(OPTIONS, validation_fraction=0))
    assert index.header.dtype == "int32"
    assert read_all(tmp_path / "out")["wide/axial/014"][0, 18, 20] == 40_000


def test_given_statistics_and_split_are_used(cohorts, tmp_path):
    options = replace(OPTIONS, validation_cases=("BraTS-GLI-00000-001", "BraTS-MET-00000-000"))
    index = make_shards(cohorts, tmp_path / "out", options, statistics=PUBLISHED)
    assert Statistics.load(tmp_path / "out" / "statistics.json") == PUBLISHED
    held_out = {c.name for c in index.header.cases if c.split == "val"}
    assert held_out == {"BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-MET-00000-000"}
    with pytest.raises(DataError, match="no case or patient is called BraTS-GLI-9"):
        make_shards(cohorts, tmp_path / "other", replace(OPTIONS, validation_cases=("BraTS-GLI-9",)))


def test_bad_cases_leave_no_trace_in_split_and_statistics(cohorts, tmp_path):
    """Left out by --skip-bad or never there: the same split, statistics and slices."""
    good = tmp_path / "good" / "gli"
    for number in range(9):
        write_case(good, f"case-{number}", number)
    some_bad = tmp_path / "some" / "gli"
    shutil.copytree(good, some_bad)
    for number in range(9, 14):
        (write_case(some_bad, f"case-{number}", number) / f"case-{number}-t1c.nii.gz").write_bytes(b"bad")
    options = replace(OPTIONS, validation_fraction=0.3, views=("axial",))
    one = make_shards([good], tmp_path / "a", options)
    other = make_shards([some_bad], tmp_path / "b", options, skip_bad=True)
    assert len(other.header.skipped) == 5
    assert one.header.cases == other.header.cases
    assert one.header.statistics == other.header.statistics
    assert list(read_all(tmp_path / "a")) == list(read_all(tmp_path / "b"))


def test_no_slice_is_large_enough(cohorts, tmp_path):
    with pytest.raises(DataError, match="no training slice has 5000 foreground pixels"):
        make_shards(cohorts, tmp_path / "out", replace(OPTIONS, minimum_foreground=5000))
    with pytest.raises(DataError):
        open_shard_set(tmp_path / "out")


@pytest.mark.parametrize(
    "changed", [{"views": ("axial", "axial")}, {"views": ()}, {"samples_per_shard": 0}, {"codec": "zip"}]
)
def test_impossible_options(changed):
    with pytest.raises(DataError):
        replace(OPTIONS, **changed)
