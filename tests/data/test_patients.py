"""Which cases belong to one patient: by name, by a file, by equal volumes."""

from pathlib import Path

import pytest

from brasyn_dist.brats import Case, patient_of
from brasyn_dist.data.patients import possible_time_points, read_patients_file, unite_equal, with_patients
from brasyn_dist.data.sharding.patient_split import held_out_by_list
from brasyn_dist.errors import DataError


def cases(*names: str) -> list[Case]:
    return [Case(name, Path()) for name in names]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        ("brats-gli-00005-001", "brats-gli-00005"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
        ("BraTS-SSA-00010-000", "BraTS-SSA-00010"),
        ("BraTS-PED-00002-000", "BraTS-PED-00002"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001"),
        ("upenn-gbm-00001_21", "upenn-gbm-00001"),
        ("UCSF-PDGM-0138_FU003d", "UCSF-PDGM-0138"),
        ("PatientID_0003_Timepoint_1", "PatientID_0003"),
        ("Patient-001_week-000-1", "Patient-001"),
        ("sub-01_ses-02", "sub-01"),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006"),
        ("BraTS-GLI-00001-000 (1)", "BraTS-GLI-00001"),
        ("BraTS-GLI-00001-000 - Copy", "BraTS-GLI-00001"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("Brats18_2013_21_1", "Brats18_2013_21_1"),
        ("TCGA-DU-7294", "TCGA-DU-7294"),
        ("UCSF-PDGM-0004", "UCSF-PDGM-0004"),
        ("scan-3", "scan-3"),
        ("copy", "copy"),
    ],
)
def test_patients_by_name(name, patient):
    assert patient_of(name) == patient


def patients(some: list[Case]) -> list[str]:
    return [case.patient for case in some]


def test_names_that_differ_in_case_are_one_patient():
    assert len(set(patients(with_patients(cases("BraTS-GLI-1-000", "brats-gli-1-001"), {})))) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "P1", "b": "P1"}',
        "a,P1\nb,P1\n",
        "case,patient\r\na,P1\r\nb,P1\r\n",
        "\ufeff# my patients\na\tP1\n\nb\tP1 # twin\n",
        '"a", P1\n"b", P1\n',
        "case;patient\r\na;P1\r\nb;P1\r\n",
    ],
)
def test_files_of_patients(tmp_path, text):
    (tmp_path / "p").write_text(text)
    assert read_patients_file(tmp_path / "p") == {"a": "P1", "b": "P1"}
    given = with_patients(cases("a", "b", "UPENN-GBM-1_11"), read_patients_file(tmp_path / "p"))
    assert patients(given) == ["P1", "P1", "UPENN-GBM-1"]


@pytest.mark.parametrize("text", ["a\nb\n", "", '{"a": ', "a,b,c\n", "a,\n", "[1]", "a,1\na,2\n"])
def test_files_of_another_form(tmp_path, text):
    (tmp_path / "p").write_text(text)
    with pytest.raises(DataError, match="/p: "):
        read_patients_file(tmp_path / "p")


def test_a_file_of_other_names_is_refused():
    with pytest.raises(DataError, match="none of its 1 names is a case, such as x"):
        with_patients(cases("a"), {"x": "P"})


def test_equal_volumes_unite_patients_with_all_their_cases():
    some = cases("BraTS-GLI-1-000", "BraTS-GLI-1-001", "UPENN-GBM-7_11", "UPENN-GBM-7_21", "z")
    prints = {c.name: (c.name,) for c in some}
    prints["UPENN-GBM-7_21"] = ("other", "BraTS-GLI-1-001")
    united, notes = unite_equal(some, prints)
    assert len(set(patients(united[:4]))) == 1 and united[4].patient == "z"
    assert len(notes) == 1 and "BraTS-GLI-1-001" in notes[0] and "UPENN-GBM-7_21" in notes[0]
    for named in ("BraTS-GLI-1-000", "UPENN-GBM-7", "UPENN-GBM-7_11"):
        assert held_out_by_list(united, [named]) == {c.name for c in united[:4]}, named


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["S1_1", "S1_2", "S2_1"], True),
        (["HGG007-a", "HGG007-b", "HGG008-a"], True),
        (["UCSF-PDGM-0001", "UCSF-PDGM-0002"], False),
        (["BraTS2021_00000", "BraTS2021_00001"], False),
        (["TCGA-02-0006", "TCGA-02-0009", "TCGA-06-0119"], False),
        (["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00001-000"], False),
        (["Brats18_2013_21_1", "Brats18_2013_22_1"], False),
        (["7-1", "7-2"], False),
    ],
)
def test_names_that_look_like_time_points_are_said(names, warned):
    assert bool(possible_time_points(cases(*names))) == warned
