"""What each order of labels means, fixed by volumes small enough to be counted by hand."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from brasyn_dist.brats import ED, ET, LABEL_ORDERS, NETC, REGIONS, canonical_labels, find_cases
from brasyn_dist.data.nifti import read_labels
from brasyn_dist.errors import DataError

CANONICAL = np.array([[[0, 1], [2, 3]], [[3, 3], [2, 2]], [[2, 0], [1, 0]]], dtype=np.uint8)
"""(3, 2, 2): 2 voxels of NETC, 4 of ED, 3 of ET, 3 of background."""

STORED = {
    "2023 and later": ("brats", {0: 0, NETC: 1, ED: 2, ET: 3}),
    "up to 2021": ("brats", {0: 0, NETC: 1, ED: 2, ET: 4}),
    "nnU-Net": ("nnunet", {0: 0, NETC: 2, ED: 1, ET: 3}),
    "edition of 2021": ("brats2021", {0: 0, NETC: 1, ED: 2, ET: 4}),
    "edition of 2023": ("brats2023", {0: 0, NETC: 1, ED: 2, ET: 3}),
    "edition of 2024": ("brats2024", {0: 0, NETC: 1, ED: 2, ET: 3}),
    "BraTS-PED": ("ped", {0: 0, NETC: 2, ED: 4, ET: 1}),
}


def stored(numbers: dict[int, int], dtype: type = np.int16) -> np.ndarray:
    return np.vectorize(numbers.__getitem__)(CANONICAL).astype(dtype)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_regions_in_each_order(tmp_path: Path, name: str, dtype: type):
    order, numbers = STORED[name]
    path = tmp_path / "case-seg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(stored(numbers, dtype), np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    labels = read_labels(path, order).array
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, CANONICAL)
    # Written out, not computed: the voxels of each region, by hand from the array above.
    voxels = {
        "ET": [(0, 1, 1), (1, 0, 0), (1, 0, 1)],
        "TC": [(0, 0, 1), (0, 1, 1), (1, 0, 0), (1, 0, 1), (2, 1, 0)],
        "WT": [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
               (2, 0, 0), (2, 1, 0)],
    }  # fmt: skip
    assert set(voxels) == set(REGIONS)
    for region, expected in voxels.items():
        assert list(map(tuple, np.argwhere(np.isin(labels, REGIONS[region])).tolist())) == expected


def test_the_wrong_order_gives_other_regions():
    """The file does not show the order of its labels, so the caller must give it."""
    labels = canonical_labels(stored(STORED["nnU-Net"][1]), order="brats")
    assert np.isin(labels, REGIONS["WT"]).sum() == 9 and np.isin(labels, REGIONS["ET"]).sum() == 3
    assert np.isin(labels, REGIONS["TC"]).sum() == 7  # oedema taken for core


@pytest.mark.parametrize(
    ("values", "order"),
    [([0, 3, 4], "brats"), ([0, 5], "brats"), ([0, -1], "brats"), ([0, 1.5], "brats"), ([0, 4], "nnunet")],
)
def test_values_without_a_meaning_are_refused(values: list[float], order: str):
    with pytest.raises(DataError, match=f"a-seg: unknown labels .* in order {order}"):
        canonical_labels(np.array(values), "a-seg", order)


def test_unknown_orders_are_refused():
    with pytest.raises(DataError, match="label order 'isles'; choose from brats, nnunet"):
        canonical_labels(CANONICAL, "a-seg", "isles")


def test_every_order_is_tested():
    assert set(LABEL_ORDERS) == {order for order, _ in STORED.values()}


def test_the_folder_of_one_case_is_accepted_as_a_folder_of_cases(tmp_path: Path):
    folder = tmp_path / "BraTS-GLI-00001-000"
    folder.mkdir()
    for modality in ("t1c", "t2w"):
        (folder / f"{folder.name}-{modality}.nii.gz").touch()
    assert [case.name for case in find_cases(folder)] == [folder.name]
    (folder / "BraTS-GLI-00002-000-t1n.nii.gz").touch()
    with pytest.raises(DataError, match="no BraTS case found"):
        find_cases(folder)


def test_folders_with_cases_one_level_deeper_are_named(tmp_path: Path):
    for name in ("train_gli/a/a-t1c.nii.gz", "train_met/b/b-t1c.nii.gz", "notes/c/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    expected = f"one level deeper, give {tmp_path / 'train_gli'} or {tmp_path / 'train_met'}$"
    with pytest.raises(DataError, match=expected):
        find_cases(tmp_path)
