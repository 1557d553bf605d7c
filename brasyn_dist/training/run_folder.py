"""A run's folder: configuration, environment, status, and the lock that keeps a second job out.

runs/<name>/{config.yaml, environment.json, status.json, metrics.jsonl, performance.jsonl, logs/, checkpoints/, panels/,
export/}
"""

import fcntl
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import brasyn_dist
from brasyn_dist.config import Config, to_dict, to_yaml
from brasyn_dist.errors import BrasynError, CheckpointError
from brasyn_dist.files import atomic_write_text, write_json

CHECKPOINTS = "checkpoints"
EXPORT = "export"
PANELS = "panels"
STATUS = "status.json"


class RunLock:
    """Exclusive use of a run folder until this process ends, however it ends. Raises BrasynError if another has it."""

    def __init__(self, run_dir: Path, patience_seconds: float = 20.0) -> None:
        self._file: TextIO = (run_dir / ".lock").open("a+")
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._file.seek(0)
                    raise BrasynError(
                        f"{run_dir} is in use by {self._file.read().strip() or 'another process'}; wait for that run "
                        "to end (or stop it with a STOP file there), or choose another name="
                    ) from None
                time.sleep(0.2)
            except OSError as error:  # a file system without locks: train on, but say so
                print(f"warning: {run_dir} cannot be locked ({error}); make sure that no other job uses it")
                break
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def write_status(run_dir: Path, status: str, step: int, total_steps: int, reason: str = "") -> None:
    """status.json: `running`, `stopped` (continue by the same command), `finished` or `failed`."""
    write_json(
        run_dir / STATUS,
        {"status": status, "step": step, "total_steps": total_steps, "reason": reason, "time": time.time()},
    )


def record(run_dir: Path, config: Config, world: int, device: str) -> None:
    """Save the merged configuration and what the run was started with."""
    atomic_write_text(run_dir / "config.yaml", to_yaml(config))
    write_json(run_dir / "environment.json", environment(world, device))


def environment(world: int, device: str) -> dict[str, Any]:
    """Versions, code, machine: what somebody needs to repeat a run."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("torch", "accelerate", "deepspeed", "numpy", "webdataset", "safetensors", "zstandard"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "brasyn_dist": brasyn_dist.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "host": socket.gethostname(),
        "processes": world,
        "device": device,
        "slurm": {k: v for k, v in os.environ.items() if k in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST")},
        "command": sys.argv,
    }


def git_commit() -> str | None:
    """Commit of the code that runs, with `+changes` if the tree differs from it; None outside a repository."""
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def run_identity(config: Config, data_fingerprint: str) -> dict[str, Any]:
    """What must be equal for a resume: data, order, batch geometry, models."""
    values = to_dict(config)
    return {
        "data_fingerprint": data_fingerprint,
        "order": values["order"],
        "global_batch_size": config.training.global_batch_size,
        "updates_per_batch": config.training.updates_per_batch,
        "generator": values["generator"],
        "discriminator": values["discriminator"],
    }


def check_identity(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError listing every key in which the checkpoint and the configuration differ."""
    differing = [
        f"{key}: checkpoint {saved.get(key)!r}, configuration {current[key]!r}"
        for key in current
        if saved.get(key) != current[key]
    ]
    if differing:
        raise CheckpointError(
            f"{folder} belongs to another run; it differs in\n  " + "\n  ".join(differing) + "\n"
            "Restore these options, or start a new run with another name= (checkpoint.init_from takes the weights along)"
        )


def changed_options(saved: dict[str, Any], config: Config) -> list[str]:
    """Options outside the identity that differ from those the checkpoint was made with, as `section.key: old -> new`."""
    current = to_dict(config)
    sections = ("objective", "optimizer", "training", "runtime")
    return [
        f"{section}.{key}: {saved[section].get(key)} -> {value}"
        for section in sections
        if section in saved
        for key, value in current[section].items()
        if saved[section].get(key) != value
    ]
