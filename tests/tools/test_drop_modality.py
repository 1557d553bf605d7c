"""The challenge's draw, against numpy's legacy generator called as the challenge calls it."""

import json
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.drop_modality import choose, main
from tests.small import small_cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("cases") / "c", cases=4) / "train_gli"


def test_draw_is_the_challenges():
    names = [f"case-{i:03d}" for i in range(219)]
    np.random.seed(123456)
    expected = [["t1c", "t1n", "t2f", "t2w"][i] for i in np.random.randint(0, 4, size=219)]
    assert list(choose(names, MODALITIES).values()) == expected


def test_cases_lose_one_modality_and_the_segmentation(cases: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main([str(cases), str(out)]) == 0
    dropped = json.loads((out / "dropped.json").read_text())
    for before, after in zip(find_cases(cases), find_cases(out), strict=True):
        assert after.missing == (dropped[after.name],) and "seg" not in after.files
        for modality in after.available:
            assert after.files[modality].read_bytes() == before.files[modality].read_bytes()
    assert main([str(cases), str(out)]) == 0  # the same again: nothing to complain about


def test_links_fixed_modality_and_segmentation(cases: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main([str(cases), str(out), "--modality", "t2f", "--link", "--keep-segmentation"]) == 0
    for case in find_cases(out):
        assert case.missing == ("t2f",) and "seg" in case.files
        assert all(path.is_symlink() for path in case.files.values())


def test_another_draw_in_the_same_folder_is_refused(cases: Path, tmp_path: Path, capsys):
    assert main([str(cases), str(tmp_path / "out"), "--modality", "t1c"]) == 0
    assert main([str(cases), str(tmp_path / "out"), "--modality", "t2w"]) == 1
    assert "another choice" in capsys.readouterr().err


def test_incomplete_cases_are_refused(cases: Path, tmp_path: Path, capsys):
    assert main([str(cases), str(tmp_path / "a"), "--modality", "t1c"]) == 0
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    error = capsys.readouterr().err
    assert "no volume for t1c" in error and not (tmp_path / "b").exists()
