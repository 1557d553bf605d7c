"""Runs whose processes are forked from one that has imported everything: a start costs tenths of a second, not five seconds.

    fork server (imports torch, Accelerate, brasyn_dist once) --fork--> launcher --fork--> rank 0, rank 1, ...

The ranks are real processes over gloo and run `brasyn_dist.cli.train.main` as the command line does; only the launcher is ours.
It does what torchrun does: sets the environment, waits, ends all ranks when one fails. Tests of launchers use the real ones.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from brasyn_dist.common.processes import run_and_leave
from tests.distributed.launch import SMALL

PRELOAD = [
    "brasyn_dist.training.gan_task",
    "brasyn_dist.training.segmenter_task",
    "brasyn_dist.training.start_run",
    "accelerate.accelerator",
    "safetensors.torch",
    "torch._dynamo",
    "torch.nn.parallel",
    "tests.distributed.warm",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class WarmRun:
    """One execution of a run, with the part of `subprocess.Popen` that tests use: `pid` (the launcher's), `poll`, `wait`."""

    def __init__(
        self,
        overrides: tuple[str, ...],
        log: Path,
        processes: int = 2,
        small: tuple[str, ...] = SMALL,
        environment: Mapping[str, str] = MappingProxyType({}),
        program: str = "brasyn_dist.cli.train",
    ) -> None:
        """Start a run.

        `small` are options that come first, `environment` is what a launcher sets beside ranks and addresses, and
        `program` is a module with `main(arguments)`.
        """
        os.environ["OMP_NUM_THREADS"] = "1"  # read when the fork server starts
        arguments = [*small, *overrides]
        settings = (program, arguments, processes, free_port(), str(log), dict(environment))
        self._process = _context.Process(target=_launch, args=settings)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("warm run", timeout or 0)
        return self._process.exitcode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch(
    program: str, arguments: list[str], processes: int, port: int, log: str, environment: dict[str, str]
) -> None:
    """Body of the launcher: exits with 0 if all ranks did, else 1 (one process: with its own status)."""
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(Path(log).parent)
    ranks = {_fork_rank(program, arguments, rank, processes, port) for rank in range(processes)}
    status = 0
    while ranks:
        pid, raw = os.wait()
        ranks.discard(pid)
        code = os.waitstatus_to_exitcode(raw)
        if code != 0 and status == 0:
            status = code if processes == 1 else 1
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    sys.exit(status)


def _fork_rank(program: str, arguments: list[str], rank: int, processes: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    if processes > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    run_and_leave(lambda: importlib.import_module(program).main(arguments))
