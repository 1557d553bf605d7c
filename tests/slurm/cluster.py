"""A Slurm of two nodes for the tests, and jobs on it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import REPOSITORY

TOOL = REPOSITORY / "tools/local_slurm.sh"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter")
TIMEOUT = 600.0
"""Seconds for any one wait: several times what it takes on an idle machine of two cores."""


def why_not() -> str | None:
    """Reason why no Slurm can be started here."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    missing = [p for p in PROGRAMS if shutil.which(p) is None]
    return (
        f"{', '.join(missing)} missing: apt-get install slurmctld slurmd slurm-client munge iproute2"
        if missing
        else None
    )


class Cluster:
    """`tools/local_slurm.sh` in a folder of its own; jobs are submitted from `work`."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))},
            "LOCAL_SLURM_DIR": str(folder),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "GPUS": "2",
            "PYTHON": sys.executable,
            # The nodes' files are this machine's: environments are handed on by sbatch as they are.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def tool(self, *arguments: str) -> None:
        done = subprocess.run(
            [TOOL, *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"local_slurm.sh {arguments}: {done.stdout}\n{done.stderr}"

    def run(self, *command: str) -> str:
        """Output of a Slurm command (or any other) of a user in `work`."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.work, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def wait_until_idle(self) -> None:
        """Until both nodes are free: a job may ask for as many as there are."""
        deadline = time.monotonic() + TIMEOUT
        while (
            state := self.run("sinfo", "--noheader", "--partition=low", "--format=%T %D").strip()
        ) != "idle 2":
            assert time.monotonic() < deadline, f"nodes are {state}\n{self.run('squeue')}"
            time.sleep(0.1)

    def submit(self, *arguments: str) -> "Job":
        return Job(self, self.run("sbatch", "--parsable", *arguments).strip())


class Job:
    """A submitted job (or task of an array, `12_3`)."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.cluster, self.number = cluster, number

    def facts(self) -> dict[str, str]:
        text = self.cluster.run("scontrol", "show", "job", "--oneliner", self.number)
        return dict(word.split("=", 1) for word in text.splitlines()[0].split() if "=" in word)

    @property
    def state(self) -> str:
        return self.facts()["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.facts()["Restarts"])

    @property
    def log(self) -> str:
        return Path(self.facts()["StdOut"]).read_text()

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"job {self.number}: not {what} after {timeout} s: {self.facts()}\n{self.log[-4000:]}"
                )
            time.sleep(0.1)

    def wait_for(self, *states: str, timeout: float = TIMEOUT) -> None:
        self.wait(lambda: self.state in states, " or ".join(states), timeout)

    def completed(self, timeout: float = TIMEOUT) -> None:
        """Wait for success; fail at once if it ends otherwise."""
        self.wait_for("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=timeout)
        assert self.state == "COMPLETED", f"{self.facts()}\n{self.log[-4000:]}"
