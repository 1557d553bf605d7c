"""The comparison of slice-wise and volume-wise networks in its small form, and its score of neighbouring slices."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare_volumes import inconsistency
from tests.distributed.launch import REPOSITORY
from tests.small import small_cases

SLICES = (
    "generator.image_size=48",
    "augmentation.crop=[32,32]",
    "generator.widths=[16,32]",
    "generator.units=1",
)
VOLUME = ("patches.size=[16,16,16]",)


def test_only_gradients_along_the_axis_count() -> None:
    real = np.full((4, 4, 4), 100.0)
    real[0] = 0  # background
    offset = np.array([0, 20, 0, 20])  # alternating slices
    assert inconsistency(real + offset, real) == pytest.approx(0.2)
    assert inconsistency(real + offset[:, None, None], real) == 0
    assert inconsistency(real + 7, real) == 0
    assert inconsistency(2 * real, real) == 0
    ramp = real + np.arange(4.0)
    assert inconsistency(2 * ramp, ramp) > 0 and inconsistency(2 * ramp, ramp, matched=True) == pytest.approx(
        0
    )


@pytest.mark.slow
def test_all_rows_are_in_the_table_and_nothing_is_repeated(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    cases = small_cases(tmp_path / "c") / "train_gli"
    command = [
        sys.executable, "benchmarks/compare_volumes.py", str(cases), "--out", str(tmp_path / "out"), "--folds", "2",
        "--fold", "0", "--seconds", "1", "--minimum-foreground", "200", "--set-slices", *SLICES, "--set-volume", *VOLUME,
    ]  # fmt: skip
    subprocess.run(command, cwd=REPOSITORY, check=True)
    text = (tmp_path / "out/table.md").read_text()
    for row in ("slices", "2.5-D", "3-D", "refiner"):
        assert text.partition("t1c:")[0].count(f"| {row} | ") == 1, row
    results = sorted((tmp_path / "out").glob("fold-*/*/result.json"))
    assert len(results) == 4 and list((tmp_path / "out").glob("BraTS*.png"))
    before = [path.stat().st_mtime_ns for path in results]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert [path.stat().st_mtime_ns for path in results] == before
