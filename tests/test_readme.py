"""The README's commands are run as they stand there, on phantom cases, at a width that a test can afford."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small import small_cases

README = Path(__file__).parents[1] / "README.md"
NARROW = (
    "generator.image_size=48 discriminator.image_size=48 generator.base_channels=8 generator.heads=2 "
    "generator.transformer_layers=1 discriminator.base_channels=8 training.global_batch_size=4 training.max_steps=4 "
    "validation.slices=2 data.cohorts=[train_gli] runtime.threads=1"
)


def commands() -> list[str]:
    """Command lines of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), flags=re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def matching(start: str) -> str:
    (found,) = [c for c in commands() if c.startswith(start)]
    return found


def run(command: str, folder: Path, extra: str = "") -> str:
    root = str(README.parent)
    words = [
        w.replace("configs/", f"{root}/configs/").replace("launch/", f"{root}/launch/") if "/" in w else w
        for w in shlex.split(f"{command} {extra}")
    ]
    words = [f"{root}/{w}" if w.startswith("tools/") else w for w in words]
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_each_stage_as_the_readme_gives_it(tmp_path: Path):
    small_cases(tmp_path / "data", cases=6)
    run(
        matching("python tools/shard_dataset.py"),
        tmp_path,
        "--minimum-foreground 200 --validation-fraction 0.34",
    )
    assert "GFLOP" in run(matching("python -m brasyn_dist.train"), tmp_path, NARROW)
    launched = matching("accelerate launch").replace(
        "--num_processes 4", "--num_processes 2 --main_process_port 0"
    )
    run(launched, tmp_path, NARROW)
    again = run(
        matching("torchrun").replace("nproc_per_node 4", "nproc_per_node 2 --standalone"), tmp_path, NARROW
    )
    assert "continues at step 4" in again
    timings = map(json.loads, (tmp_path / "runs/r3/performance.jsonl").read_text().splitlines())
    assert [line["step"] for line in timings if line.get("resume_seconds", 0) > 0] == [4]
    (tmp_path / "complete_cases").symlink_to(tmp_path / "data/train_gli")
    run(matching("python tools/drop_modality.py"), tmp_path)
    (tmp_path / "cases").symlink_to(tmp_path / "dropped")
    run(matching("python -m brasyn_dist.infer --weights runs/r3"), tmp_path)
    table = run(matching("python -m brasyn_dist.evaluate"), tmp_path)
    assert "best copy" in table
    report = (tmp_path / "evaluation/report.html").read_text()
    assert "Not scored" not in report and "http://" not in report and "https://" not in report


def test_the_two_promised_commands_are_there():
    assert "./demo.sh" in commands() and "./test.sh" in commands()
    for script in ("demo.sh", "test.sh"):
        assert os.access(README.parent / script, os.X_OK)


@pytest.mark.slow
@pytest.mark.real
def test_published_weights_as_the_readme_converts_them(tmp_path: Path, shared: Path):
    """The reference file's names carry a prefix that real checkpoints lack; its network has 4 heads instead of 16."""
    from safetensors.torch import load_file, save_file

    weights = load_file(shared / "reference/generator-grouped.safetensors")
    published = {k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")}
    save_file(published, tmp_path / "PUBLISHED.safetensors")
    run(matching("python tools/convert_checkpoint.py").replace("--heads 16", "--heads 4"), tmp_path)
    small_cases(tmp_path / "data", cases=2)
    (tmp_path / "complete_cases").symlink_to(tmp_path / "data/train_gli")
    run(matching("python tools/drop_modality.py"), tmp_path)
    (tmp_path / "cases").symlink_to(tmp_path / "dropped")
    run(matching("python -m brasyn_dist.infer --weights exported"), tmp_path)
    assert list((tmp_path / "completed").glob("*.nii.gz"))
