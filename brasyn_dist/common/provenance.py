"""What a result was made with: versions, code, machine, batch job."""

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import brasyn_dist
from brasyn_dist.common.launch_environment import NUMERICAL
from brasyn_dist.common.logs import redact

SLURM_FACTS = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_CLUSTER_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT", "SLURM_GPUS_ON_NODE",
)  # fmt: skip
"""Environment variables of a batch job that are recorded with its run."""


def slurm_job() -> str | None:
    """`<job>.<restarts>`, which no two attempts share; None outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}.{slurm_restarts()}" if job else None


def slurm_restarts() -> int:
    """Number of times that Slurm has requeued this job; 0 outside of Slurm."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def slurm_facts() -> dict[str, str]:
    """The variables of SLURM_FACTS that are set."""
    return {name: os.environ[name] for name in SLURM_FACTS if name in os.environ}


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
        "slurm": slurm_facts(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if NUMERICAL.match(k)},
        "command": [redact(word) for word in sys.argv],
    }


def git_commit() -> str | None:
    """Commit of the code, with `+changes` if the tree differs from it; None outside a repository."""
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
