"""`brasyn demo` (demo.sh) on small phantom cases: all stages, with a killed and resumed training."""

import json
from pathlib import Path

import pytest

from brasyn_dist.brats import MODALITIES
from brasyn_dist.cli.demo import main, saved_step
from tests.small import small_cases

CONFIG = """
data: {views: [axial]}
generator: {image_size: 96, base_channels: 8, heads: 2, transformer_layers: 1, norm_groups: 4}
discriminator: {image_size: 96, base_channels: 8}
training: {global_batch_size: 4, max_steps: 6, updates_per_batch: 1}
checkpoint: {every_steps: 1}
validation: {every_steps: 6, slices: 2}
"""


@pytest.mark.slow
def test_from_cases_to_the_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    cases, out = small_cases(tmp_path / "cases", 4, (96, 96, 32)), tmp_path / "demo"
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    arguments = ["--data", cases, "--out", out, "--config", tmp_path / "tiny.yaml", "--kill-at", "2"]
    assert main(list(map(str, arguments))) == 0
    printed = capfd.readouterr().out
    assert "killed all processes with SIGKILL after step 2" in printed and "continues at step" in printed
    assert saved_step(out / "runs/demo/checkpoints") == 6
    assert json.loads((out / "runs/demo/status.json").read_text())["status"] == "finished"
    held_out = len(list((out / "held_out").iterdir()))
    assert len(list((out / "predictions").glob("*.nii.gz"))) == held_out * len(MODALITIES)
    assert "report.html" in printed and (out / "evaluation/report.html").stat().st_size > 10_000
