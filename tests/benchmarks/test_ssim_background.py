"""The demonstration of SSIM's dependence on the background holds on phantoms; it reports when it does not."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/ssim_background.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ssim_background", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_noise_in_the_tumour_scores_above_98_by_the_convention_only(script, tmp_path: Path, capsys):
    assert script.main(["--phantoms", "2", "--shape", "96", "96", "64", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "ssim_background.json").read_text())["rows"]
    assert len(rows) == 2 * 4 * 3
    assert all(r["challenge"] > r["region"] for r in rows)
    assert (tmp_path / "ssim_background.png").read_bytes().startswith(b"\x89PNG")
    assert "noise      all" in capsys.readouterr().out


def test_the_claim_can_fail(script):
    row = {"tumour": "noise", "challenge": 0.99, "region": 0.1}
    rows = [{**row, "modality": m} for m in ("t1c", "t1n", "t2f", "t2w")]
    assert script.holds(rows)
    assert not script.holds([*rows[:3], {**rows[3], "region": 0.6}])
    assert not script.holds([*rows[:3], {**rows[3], "challenge": 0.97}])
