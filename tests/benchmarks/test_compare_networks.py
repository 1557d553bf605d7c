"""The comparison of networks in its small form: all stages run once, the table has all rows, nothing is repeated."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.compare_networks import nested_choice
from tests.distributed.launch import REPOSITORY
from tests.small import small_cases

SMALL = (
    "generator.image_size=48", "augmentation.crop=[32,32]", "generator.widths=[16,32]", "generator.units=1",
)  # fmt: skip


@pytest.mark.slow
def test_networks_of_one_cost_in_one_table(tmp_path: Path):
    cases = small_cases(tmp_path / "c", cases=3) / "train_gli"
    command = [
        sys.executable, "benchmarks/compare_networks.py", str(cases), "--out", str(tmp_path / "out"), "--folds", "2",
        "--seconds", "1", "--seeds", "0", "--networks", "axial", "textbook", "mixed", "--minimum-foreground", "200",
        "--set", *SMALL,
    ]  # fmt: skip
    subprocess.run(command, cwd=REPOSITORY, check=True)
    text = (tmp_path / "out/table.md").read_text()
    whole = text.partition("t1c:")[0]
    for row in (
        "axial", "axial, mirrored", "textbook", "mixed", "mixed, 1 available", "linear regression", "best copy",
        "axial - textbook", "nested choice",
    ):  # fmt: skip
        assert whole.count(f"| {row} | 2 |") == 1, row
    results = sorted((tmp_path / "out").glob("fold-*/*/result.json"))
    assert len(results) == 2 * 6
    before = [path.stat().st_mtime_ns for path in results]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert [path.stat().st_mtime_ns for path in results] == before
    assert (tmp_path / "out/table.md").read_text() == text


def scores_of(*rows: tuple[str, str, float]) -> pd.DataFrame:
    """Rows of (network, fold, SSIM); each fold has one subject."""
    table = pd.DataFrame(rows, columns=["network", "fold", "ssim/healthy"])
    return table.assign(case=table.fold, **{"ssim/tumour": table["ssim/healthy"]})


def test_nested_choice_does_not_look_at_the_subjects_that_it_is_scored_on():
    table = scores_of(("a", "fold-0", 0.9), ("b", "fold-0", 0.1), ("a", "fold-1", 0.2), ("b", "fold-1", 0.3))
    chosen, scores = nested_choice(table, ["a", "b"])
    assert chosen == {"fold-0": "b", "fold-1": "a"}  # each is the worse one on its own fold
    assert list(scores["ssim/healthy"]) == [0.1, 0.2]
    assert set(scores.network) == {"nested choice"}


def test_a_network_that_was_not_run_on_every_fold_is_not_chosen():
    table = scores_of(("a", "fold-0", 0.1), ("a", "fold-1", 0.1), ("b", "fold-1", 0.9))
    assert nested_choice(table, ["a", "b"])[0] == {"fold-0": "a", "fold-1": "a"}


def test_cases_without_segmentations_give_no_nested_choice():
    table = scores_of(("a", "fold-0", float("nan")), ("a", "fold-1", float("nan")))
    chosen, scores = nested_choice(table, ["a"])
    assert chosen == {} and scores.empty
