"""Modality sets: file names, files of sets, and what makes a set impossible."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml

from brasyn_dist.brats import BRATS, canonical_labels, find_case, find_cases
from brasyn_dist.errors import DataError
from brasyn_dist.modality_set import ModalitySet, read_modality_set

PROSTATE = ModalitySet(
    "prostate",
    ("t2", "adc", "hbv"),
    suffixes={"t2w": "t2", "adc": "adc", "ep2d_adc": "adc", "hbv": "hbv", "lesion": "seg"},
    labels={1: "lesion", 5: "zone"},
    regions={"all": (1, 5)},
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10001_t2w.nii.gz", ("10001", "t2")),
        ("a-b-ADC.nii", ("a-b", "adc")),
        ("10001_ep2d_adc.nii.gz", ("10001", "adc")),
        ("10001_lesion.nii.gz", ("10001", "seg")),
        ("10001_seg.nii.gz", None),
        ("t2w.nii.gz", None),
        ("10001_t2w.mha", None),
    ],
)
def test_file_names(name, expected):
    assert PROSTATE.parse_file_name(name) == expected


def test_file_names_of_brats():
    for name, expected in (
        ("BraTS-GLI-00000-000-t1c.nii.gz", ("BraTS-GLI-00000-000", "t1c")),
        ("BraTS2021_00001_t1ce.nii.gz", ("BraTS2021_00001", "t1c")),
        ("a_flair.nii", ("a", "t2f")),
        ("a_t1-t2.nii.gz", ("a_t1", "t2w")),
        ("a-seg.nii.gz", ("a", "seg")),
        ("a_t3.nii.gz", None),
    ):
        assert BRATS.parse_file_name(name) == expected


def test_without_suffixes_names_are_suffixes_and_without_labels_there_is_no_segmentation():
    plain = ModalitySet("plain", ("T1", "T2"))
    assert plain.parse_file_name("c-t1.nii.gz") == ("c", "T1")
    assert plain.parse_file_name("c-seg.nii.gz") is None
    labelled = ModalitySet("labelled", ("T1", "T2"), labels={1: "lesion"})
    assert labelled.parse_file_name("c-seg.nii.gz") == ("c", "seg")


def test_cases_carry_their_set(tmp_path: Path):
    folder = tmp_path / "10001"
    folder.mkdir()
    for name in ("10001_t2w.nii.gz", "10001_hbv.nii.gz", "10001_lesion.nii.gz", "10001-t1c.nii.gz"):
        (folder / name).touch()
    case = find_case(folder, modality_set=PROSTATE)
    assert set(case.files) == {"t2", "hbv", "seg"}
    assert case.available == ("t2", "hbv") and case.missing == ("adc",)
    assert find_cases(tmp_path, "c", PROSTATE) == [
        pickle.loads(pickle.dumps(find_case(folder, "c", PROSTATE)))
    ]
    with pytest.raises(DataError, match=r"no case of modality set plain found; .*CASE-x\.nii\.gz"):
        find_cases(tmp_path, modality_set=ModalitySet("plain", ("x", "y")))


def test_labels_and_regions():
    labels = canonical_labels(np.array([0, 5, 1]), modality_set=PROSTATE)
    assert labels.tolist() == [0, 5, 1]
    assert np.isin(labels, PROSTATE.regions["all"]).tolist() == [False, True, True]
    with pytest.raises(DataError, match=r"unknown labels \[2\] in order prostate; expected 0, 1, 5"):
        canonical_labels(np.array([0, 2]), modality_set=PROSTATE)


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_files(tmp_path: Path, write):
    path = tmp_path / "set.yaml"
    for known in (PROSTATE, BRATS):
        path.write_text(write(known.to_dict()))
        assert read_modality_set(path) == known
    path.write_text("name: two\nmodalities: [pd, t2]\n")
    assert read_modality_set(path) == ModalitySet("two", ("pd", "t2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not valid YAML or JSON"),
        ("[1]", "not a modality set"),
        ("name: x", "not a modality set"),
        ("{name: x, modalities: ab}", "must be a list"),
        ("{name: x, modalities: [a, b], regoins: {}}", "regoins"),
        ("{name: x, modalities: [a]}", "at least two"),
        ("{name: x, modalities: [a, a]}", "at least two"),
        ("{name: x, modalities: [a, seg]}", "'seg'; use letters"),
        ("{name: x, modalities: [a, b/c]}", "'b/c'; use letters"),
        ("{name: x, modalities: [a, b], suffixes: {c: c}}", "suffixes name unknown modalities c"),
        ("{name: x, modalities: [a, b], suffixes: {c: a}}", "no file suffix for b"),
        ("{name: x, modalities: [a, b], labels: {0: background}}", "values must be from 1"),
        ("{name: x, modalities: [a, b], labels: {1: l}, regions: {r: [2]}}", "region r has labels"),
    ],
)
def test_impossible_sets(tmp_path: Path, text, message):
    path = tmp_path / "set.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"set\.yaml: .*{message}"):
        read_modality_set(path)
