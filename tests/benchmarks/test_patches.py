"""The benchmark of patches on small cases: every loader yields patches, and the table has a line for each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.data.chunk_sets import write_cases


@pytest.mark.slow
def test_every_loader_is_measured(tmp_path: Path) -> None:
    command = [
        sys.executable, str(REPOSITORY / "benchmarks" / "bench_patches.py"), str(write_cases(tmp_path)),
        "--out", str(tmp_path / "out"), "--rounds", "1", "--patches", "8", "--sides", "16", "--sizes", "16,16,8",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "patches.json").read_text())["rounds"]
    assert [row["loader"] for row in rows] == ["cache", "ours", "copied", "persistent"]
    assert all(row["patches"] == 8 and row["brain"] > 0.3 for row in rows)
    assert all(row["name"] in done.stdout for row in rows)
