"""Real processes that share work, for the tests: start, observe, kill, stop.

`Started` runs a command. `Forked` runs the same `main` in a process of a fork server that has imported everything before: it
starts within tenths of a second.
"""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from brasyn_dist.common.processes import descendants
from brasyn_dist.workqueue.queue import FOLDER
from tests.conftest import REPOSITORY

PLAIN = (sys.executable, "-m")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "launch/cpu.yaml"),
    "--num_processes", "3", "--main_process_port", "0", "-m",
)  # fmt: skip
TIMEOUT = 600.0
LEASE = ("--lease", "4")
_server = multiprocessing.get_context("forkserver")


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

    def poll(self) -> int | None:
        return self.process.poll()

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


class Forked(Started):
    """`main` of a module with arguments and environment variables, in a forked process."""

    def __init__(
        self, module: str, arguments: Sequence[object], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # read when the fork server starts
        _server.set_forkserver_preload(["brasyn_dist.inference.api", "brasyn_dist.evaluate", __name__])
        self.log = log
        log.touch()
        words = list(map(str, arguments))
        self._child = _server.Process(target=_main, args=(module, words, str(log), environment or {}))
        self._child.start()

    @property
    def pid(self) -> int:
        assert self._child.pid is not None
        return self._child.pid

    def poll(self) -> int | None:
        return self._child.exitcode

    def wait(self) -> int:
        self._child.join(TIMEOUT)
        if self._child.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {TIMEOUT} s:\n{self.text[-4000:]}")
        return self._child.exitcode

    def kill(self) -> None:
        self._child.kill()
        self._child.join()


def start(
    launcher: Sequence[str],
    module: str,
    arguments: Sequence[object],
    log: Path,
    environment: dict[str, str] | None = None,
    *more: object,
) -> Started:
    """A command under a launcher; plain ones are forked, unless they start processes of their own (`more`)."""
    if launcher == PLAIN and not more:
        return Forked(module, arguments, log, environment)
    return Started(launcher, [module, *arguments, *more], log, environment)


def _main(module: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in [n for n in os.environ if n.startswith("SLURM_")]:
        del os.environ[name]
    os.environ.update(environment)
    sys.exit(importlib.import_module(module).main(arguments))


def signal_to(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def read(path: Path) -> str:
    """Content; empty if the file has just gone."""
    with suppress(FileNotFoundError):
        return path.read_text()
    return ""


def workers_at(folder: Path) -> dict[int, str]:
    """Workers that joined: name by process number."""
    found = {}
    for path in (folder / FOLDER).glob("0*/workers/*"):
        text = read(path)
        if text and not path.name.startswith("."):
            values = json.loads(text)
            found[values["pid"]] = values["name"]
    return found


def recorded(folder: Path) -> dict[str, list[str]]:
    """Items in the record files so far, by worker."""
    records = (folder / FOLDER).glob("0*/records/*.jsonl")
    lines = {path.stem: read(path).split("\n")[:-1] for path in records}
    return {
        name: [e["item"] for e in map(json.loads, filter(None, text)) if "item" in e]
        for name, text in lines.items()
    }


def claimed(folder: Path, name: str) -> list[str]:
    """Items that a worker has claimed."""
    claims = (folder / FOLDER).glob("0*/claims/*")
    return [path.name.rpartition(".")[0] for path in claims if read(path) == name]


def busy(folder: Path, pid: int, at_least: int) -> bool:
    """Whether that process has recorded some items and is processing another one."""
    name = workers_at(folder).get(pid, "")
    done = recorded(folder).get(name, [])
    return len(done) >= at_least and bool(set(claimed(folder, name)) - set(done))


def wait_until(condition: Callable[[], bool], *started: Started) -> None:
    """Poll until it holds. Fails if a process ends before, or nothing happens."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        ended = [s for s in started if s.poll() is not None]
        late = time.monotonic() > deadline
        if ended or late:
            for s in started:
                s.kill()
            shown = "\n".join(s.text[-3000:] for s in started)
            raise AssertionError(f"{'too late' if late else 'a process ended too early'}:\n{shown}")
        time.sleep(0.002)
