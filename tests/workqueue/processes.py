"""Real processes that share work, for the tests: start, watch, kill, stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from brasyn_dist.common.processes import descendants
from tests.conftest import REPOSITORY

PLAIN = (sys.executable, "-m")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "launch/cpu.yaml"),
    "--num_processes", "3", "--main_process_port", "0", "-m",
)  # fmt: skip
TIMEOUT = 600.0
LEASE = ("--lease", "4")


def array_task(number: int, job: int = 77) -> dict[str, str]:
    """Environment of a job array's task, as Slurm sets it."""
    return {
        "SLURM_JOB_ID": str(job + number),
        "SLURM_ARRAY_JOB_ID": str(job),
        "SLURM_ARRAY_TASK_ID": str(number),
    }


class Started:
    """A command that runs, with its output in a file."""

    def __init__(
        self,
        launcher: Sequence[str],
        arguments: Sequence[object],
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        clean |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **(environment or {})}
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*launcher, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT, env=clean
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {TIMEOUT} s:\n{self.text[-4000:]}") from None

    def kill(self) -> None:
        """SIGKILL, and to all it has started."""
        for pid in [*descendants(self.pid), self.pid]:
            signal_to(pid, signal.SIGKILL)
        self.process.wait()


def signal_to(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def read(path: Path) -> str:
    """Content; empty if the file has just gone."""
    with suppress(FileNotFoundError):
        return path.read_text()
    return ""


def crew(folder: Path) -> dict[int, str]:
    """Workers at the folder: name by process number."""
    found = {}
    for path in (folder / ".fanout").glob("0*/workers/*"):
        text = read(path)
        if text and not path.name.startswith("."):
            values = json.loads(text)
            found[values["pid"]] = values["name"]
    return found


def recorded(folder: Path) -> dict[str, list[str]]:
    """Items in the journals so far, by worker."""
    journals = (folder / ".fanout").glob("0*/journals/*.jsonl")
    lines = {path.stem: read(path).split("\n")[:-1] for path in journals}
    return {
        name: [e["item"] for e in map(json.loads, filter(None, text)) if "item" in e]
        for name, text in lines.items()
    }


def claimed(folder: Path, name: str) -> list[str]:
    """Items that a worker has claimed."""
    claims = (folder / ".fanout").glob("0*/claims/*")
    return [path.name.rpartition(".")[0] for path in claims if read(path) == name]


def busy(folder: Path, pid: int, at_least: int) -> bool:
    """Whether that process has recorded some items and is in the midst of another."""
    name = crew(folder).get(pid, "")
    done = recorded(folder).get(name, [])
    return len(done) >= at_least and bool(set(claimed(folder, name)) - set(done))


def wait_until(condition: Callable[[], bool], *started: Started) -> None:
    """Poll until it holds. Fails if a process ends before, or nothing happens."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        ended = [s for s in started if s.process.poll() is not None]
        late = time.monotonic() > deadline
        if ended or late:
            for s in started:
                s.kill()
            shown = "\n".join(s.text[-3000:] for s in started)
            raise AssertionError(f"{'too late' if late else 'a process ended too early'}:\n{shown}")
        time.sleep(0.002)
