"""The comparison of guidance terms in its small form: all stages run, and the same command again gives the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launch import REPOSITORY
from tests.small import small_cases


@pytest.mark.slow
def test_terms_in_one_table(tmp_path: Path):
    cases = small_cases(tmp_path / "c", cases=4) / "train_gli"
    command = [
        sys.executable, "benchmarks/guidance.py", str(cases), "--out", str(tmp_path / "out"), "--folds", "3",
        "--only-folds", "1", "--targets", "t1c", "t2f", "--steps", "2", "--term-steps", "2", "--segmenter-steps", "2",
        "--minimum-foreground", "200",
        "--set", "generator.image_size=48", "augmentation.crop=[32,32]", "generator.widths=[16,32]",
        "--set-segmenter", "segmenter.image_size=48", "segmenter.widths=[8,16]",
    ]  # fmt: skip
    subprocess.run(command, cwd=REPOSITORY, check=True)
    text = (tmp_path / "out/guidance.md").read_text()
    for row in ("real", "none", "tversky", "segmenter_features", "auxiliary_segmentation", "tversky - none"):
        assert text.count(f"| {row} | 1 |") == 1, row
    metrics = sorted((tmp_path / "out").glob("fold-1/*/metrics.jsonl"))
    predictions = sorted((tmp_path / "out").glob("fold-1/predictions-*/*.nii.gz"))
    assert (len(metrics), len(predictions)) == (7, 4 * 2 + 1)

    def written() -> list[object]:
        return [path.read_bytes() for path in (*metrics, *predictions)]

    before = written()
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert written() == before
    assert (tmp_path / "out/guidance.md").read_text() == text
