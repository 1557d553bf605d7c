"""Patient-level split: all cases of a patient are on one side, independent of the other patients."""

from pathlib import Path

import pytest

from brasyn_dist.brats import Case
from brasyn_dist.data.sharding.patient_split import (
    check_known,
    held_out_by_fraction,
    held_out_by_list,
    read_split_file,
)
from brasyn_dist.errors import DataError


def cases(patients: int, cohort: str = "gli", time_points: int = 2) -> list[Case]:
    return [
        Case(f"BraTS-{cohort.upper()}-{p:05d}-{t:03d}", Path(), {}, cohort)
        for p in range(patients)
        for t in range(time_points)
    ]


def patients(chosen: list[Case], names: set[str]) -> set[str]:
    return {c.patient for c in chosen if c.name in names}


@pytest.mark.parametrize("fraction, expected", [(0.1, 4), (0.5, 20), (0.01, 1), (0.99, 39), (0, 0)])
def test_the_fraction_counts_patients_of_each_cohort(fraction, expected):
    chosen = cases(40) + cases(40, "met")
    held_out = held_out_by_fraction(chosen, fraction, 0)
    for cohort in ("gli", "met"):
        of_cohort = [c for c in chosen if c.cohort == cohort]
        assert len(patients(of_cohort, held_out)) == expected
    assert len(held_out) == 4 * expected, "both time points of each"


def test_a_single_patient_is_trained_on():
    assert held_out_by_fraction(cases(1), 0.5, 0) == set()
    assert len(held_out_by_fraction(cases(2, time_points=1), 0.01, 0)) == 1


def test_another_patient_moves_at_most_one():
    before = held_out_by_fraction(cases(50), 0.2, 3)
    for more in range(51, 60):
        moved = patients(cases(more), before ^ held_out_by_fraction(cases(more), 0.2, 3))
        old = {p for p in moved if int(p[-5:]) < more - 1}
        assert len(old) <= 1
        before = held_out_by_fraction(cases(more), 0.2, 3)


def test_the_seed_chooses_others():
    assert held_out_by_fraction(cases(50), 0.2, 0) != held_out_by_fraction(cases(50), 0.2, 1)
    assert held_out_by_fraction(cases(50), 0.2, 0) == held_out_by_fraction(reversed(cases(50)), 0.2, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 3])
def test_impossible_fractions(fraction):
    with pytest.raises(DataError, match="validation fraction"):
        held_out_by_fraction(cases(3), fraction, 0)


def test_a_list_holds_out_whole_patients():
    expected = {c.name for c in cases(5) if c.patient in ("BraTS-GLI-00001", "BraTS-GLI-00003")}
    assert held_out_by_list(cases(5), ["BraTS-GLI-00001-001", "BraTS-GLI-00003"]) == expected
    assert held_out_by_list(cases(5)[3:], ["BraTS-GLI-00001-000"]) == {"BraTS-GLI-00001-001"}, (
        "a patient stays held out when the time point that was named is bad"
    )


def test_unknown_names_are_refused():
    known = [c.name for c in cases(3)]
    check_known(known[:2], known)
    with pytest.raises(DataError, match=r"no case or patient is called nobody \(nor 1 more"):
        check_known(["zero", known[0], "nobody"], known)


@pytest.mark.parametrize(
    "text", ['["a", "b"]', "a\nb\n", "# held out\n\na  # first\n b\n", ' [\n"a",\n"b"\n]\n']
)
def test_split_files(tmp_path, text):
    (tmp_path / "split").write_text(text)
    assert read_split_file(tmp_path / "split") == ("a", "b")


def test_bad_split_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_split_file(tmp_path / "absent")
    (tmp_path / "split").write_text('["a", ')
    with pytest.raises(DataError, match="not a list of case names"):
        read_split_file(tmp_path / "split")
