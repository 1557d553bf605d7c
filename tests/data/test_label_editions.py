"""The label edition of a cohort: decided from all files, said, and refused where the files contradict each other."""

import numpy as np
import pytest

from brasyn_dist.brats import CAVITY, ED, ET, NETC, canonical_labels, find_cases
from brasyn_dist.data.label_editions import decide, recorded, with_label_editions
from brasyn_dist.data.nifti import read_case
from brasyn_dist.errors import DataError
from tests.data.case_files import LPS, SHAPE, brain, save, write_case


def values(*files: set[int], stem: str = "BraTS-GLI-0000{}-000") -> dict[str, frozenset[int]]:
    return {stem.format(number): frozenset(found) for number, found in enumerate(files)}


@pytest.mark.parametrize(
    ("found", "edition"),
    [
        (values({1, 2, 3}, {1, 2}), "brats2023"),
        (values({1, 2}, {2}), "brats2023"),
        (values({1, 2, 4}, {1, 2}, stem="BraTS2021_0000{}"), "brats2021"),
        (values({1, 2, 4}, {1, 2}), "brats2021"),
        (values({1, 2, 3}, {1, 2, 3, 4}), "brats2024"),
        (values({1, 2, 4}, {1, 2, 3, 4}), "brats2024"),
        (values({1, 2, 3, 4}, {1, 2}, stem="BraTS-PED-0000{}-000"), "ped"),
        (values({1, 2, 4}, {1, 2}, stem="BraTS-PED-0000{}-000"), "ped"),
        (values({1, 2, 3}, {1, 4}, stem="brats-ped-0000{}-000"), "ped"),
        (values({1, 2, 3}, {1, 2}, stem="BraTS-PED-0000{}-000"), "brats2023"),
    ],
)
def test_the_edition_follows_from_the_whole_cohort(found, edition):
    decision = decide("train", found)
    assert decision.edition == edition and decision.reason


def test_a_folder_name_may_state_the_cohort():
    found = values({1, 2, 3, 4}, stem="subject-{}")
    assert decide("train_ped", found).edition == "ped"
    assert decide("impeded", found).edition == "brats2024"


@pytest.mark.parametrize(
    ("found", "edition", "warning"),
    [
        (values({1, 2, 3, 4}, {1, 2, 4}), "auto", "4 without 3 in 1 file"),
        (values({1, 2, 3}, {1, 2, 4}), "brats2024", "4 without 3 in 1 file"),
        (values({1, 2, 4}), "auto", "if 4 is a resection cavity"),
        (values({1, 2, 3}, stem="BraTS-PED-0000{}-000"), "auto", "--label-edition ped"),
        (values({1, 2, 3}), "auto", ""),
        (values({1, 2, 4}, stem="BraTS2021_0000{}"), "auto", ""),
    ],
)
def test_what_the_user_should_check_is_said(found, edition, warning):
    assert warning in decide("train", found, edition).warning
    assert bool(warning) == bool(decide("train", found, edition).warning)


def test_contradictions_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"train: value 3 in 1 file .*, value 4 in 2 files .*--label-edition"):
        decide("train", values({1, 2, 3}, {1, 2, 4}, {4}))


def test_only_unusual_editions_are_recorded():
    decisions = {"a": decide("a", values({3})), "b": decide("b", values({3, 4}))}
    assert recorded(decisions) == {"b": "brats2024"}


def test_cohorts_are_decided_one_by_one_and_damaged_files_take_no_part(tmp_path, caplog):
    caplog.set_level("INFO")
    write_case(tmp_path / "new", "BraTS-GLI-00000-000", 0)
    write_case(tmp_path / "old", "BraTS2021_00000", 1, enhancing=4)
    damaged = write_case(tmp_path / "old", "BraTS2021_00001", 2, enhancing=4)
    (damaged / "BraTS2021_00001-seg.nii.gz").write_bytes(b"\x1f\x8bnothing")
    cases = find_cases(tmp_path / "new") + find_cases(tmp_path / "old")
    edited, decisions = with_label_editions(cases)
    assert [c.label_order for c in edited] == ["brats2023", "brats2021", "brats2021"]
    assert (
        len(decisions) == 2
        and "value 4, enhancing tumour, in 1 file (BraTS2021_00000); value 3 in none" in caplog.text
    )
    np.testing.assert_array_equal(read_case(edited[1]).labels, brain(1)[1])


STORED = {
    "brats2021": {NETC: 1, ED: 2, ET: 4},
    "brats2023": {NETC: 1, ED: 2, ET: 3},
    "brats2024": {NETC: 1, ED: 2, ET: 3, CAVITY: 4},
    "ped": {NETC: 3, ED: 4, ET: 1},
}


@pytest.mark.parametrize("edition", STORED)
def test_files_of_each_edition_give_the_same_labels(tmp_path, edition):
    labels = brain(0)[1]
    if edition == "brats2024":
        labels[:5] = CAVITY
    stored = np.zeros(SHAPE, np.uint8)
    for label, value in STORED[edition].items():
        stored[labels == label] = value
    name = "BraTS-PED-00000-000" if edition == "ped" else "BraTS-GLI-00000-000"
    save(write_case(tmp_path / "c", name) / f"{name}-seg.nii.gz", stored, LPS, np.uint8)
    (case,), _ = with_label_editions(find_cases(tmp_path / "c"))
    np.testing.assert_array_equal(read_case(case).labels, labels)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (np.linspace(0, 3, 12_345), r"12,34\d different values from .*interpolated\?.*nearest neighbour"),
        (np.array([0, 7]), r"unknown labels \[7\]"),
    ],
)
def test_messages_of_unknown_labels_are_short(stored, message):
    with pytest.raises(DataError, match=message) as raised:
        canonical_labels(stored, "a-seg")
    assert len(str(raised.value)) < 300


def test_nearly_whole_labels_are_rounded():
    stored = np.array([0, 1.00000002, 1.9999, 3.0005])
    assert canonical_labels(stored).tolist() == [0, 1, 2, 3]
