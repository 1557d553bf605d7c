"""Real training runs of several processes for the tests: launch, watch, kill, compare."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from brasyn_dist.common.processes import kill_tree

REPOSITORY = Path(__file__).resolve().parents[2]

SMALL = (
    "generator.image_size=48",
    "discriminator.image_size=48",
    "generator.base_channels=8",
    "generator.heads=2",
    "generator.transformer_layers=1",
    "discriminator.base_channels=8",
    "training.global_batch_size=8",
    "optimizer.base_rate=8e-3",
    "optimizer.warmup_steps=4",
    "validation.slices=3",
    "validation.batch_size=2",
    "validation.panels=1",
    "telemetry.log_every=2",
    "telemetry.report=false",
    "runtime.threads=1",
)
"""The real networks and code at 48 x 48 and an eighth of the width: seconds instead of hours."""


SMALL_SEGMENTER = (
    "segmenter.image_size=48",
    "segmenter.widths=[8,16,24]",
    "training.global_batch_size=8",
    "optimizer.base_rate=8e-2",
    "optimizer.warmup_steps=4",
    "validation.slices=3",
    "validation.batch_size=2",
    "validation.panels=1",
    "telemetry.log_every=2",
    "runtime.threads=1",
)


class Running(Protocol):
    """A started run: a `subprocess.Popen` of a launcher, or a `WarmRun`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...


def command(
    overrides: tuple[str, ...],
    processes: int = 2,
    launcher: str = "torchrun",
    program: tuple[str, ...] = ("brasyn_dist.train", *SMALL),
) -> list[str]:
    """Command line of a run under `torchrun`, `accelerate` or plain `python`."""
    module = ["-m", *program, *overrides]
    if launcher == "python":
        return [sys.executable, *module]
    if launcher == "torchrun":
        return [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *module,
        ]  # fmt: skip
    config = REPOSITORY / ("launch/cpu.yaml" if launcher == "accelerate" else launcher)
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
        "--num_processes", str(processes), "--main_process_port", "0", *module,
    ]  # fmt: skip


def start(
    arguments: list[str], log: Path, more: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[bytes]:
    """Start, with `more` in the environment; output goes to `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}
    with log.open("ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment, cwd=log.parent)


def run(arguments: list[str], log: Path, timeout: float = 300) -> int:
    """Run to the end; exit status. Kills everything and fails if it takes longer than `timeout` seconds."""
    process = start(arguments, log)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise AssertionError(f"still running after {timeout} s:\n{log.read_text()[-4000:]}") from None


def kill(process: Running) -> None:
    """SIGKILL the launcher and every worker, at once."""
    kill_tree(process.pid)
    process.wait()


def logged_step(run_dir: Path) -> int:
    """Last optimiser step in metrics.jsonl; 0 before the first."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue
    return 0


def saved_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint; 0 without."""
    marks = (run_dir / "checkpoints").glob("step-*/manifest.json")
    return max((int(p.parent.name.removeprefix("step-")) for p in marks), default=0)


def wait_until(process: Running, condition: object, log: Path, timeout: float = 120) -> bool:
    """Poll `condition()` every 2 ms until it holds (True) or the process has ended (False)."""
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            kill(process)
            raise AssertionError(f"nothing happened for {timeout} s:\n{log.read_text()[-4000:]}")
        time.sleep(0.002)
    return True


def final_state(run_dir: Path, step: int, files_at_least: int = 7) -> dict[str, bytes]:
    """Bytes that must not depend on interruptions: weights, average, optimisers, metrics, export."""
    checkpoint = run_dir / "checkpoints" / f"step-{step:08d}"
    files = [
        *checkpoint.glob("*.safetensors"),
        run_dir / "metrics.jsonl",
        run_dir / "export" / "model.safetensors",
    ]
    assert len(files) >= files_at_least, f"{checkpoint} holds {sorted(p.name for p in files)}"
    return {p.name: p.read_bytes() for p in files}
