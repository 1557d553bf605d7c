"""Who is at work, and whether it still lives.

Every worker keeps a file, and a thread of it touches that file all the time. Others call it dead

- at once, if it has said that it leaves, or if it was a process of this machine and that process is gone;
- else when its file has not changed for `lease` seconds of *their own* monotonic clock, however far the clocks of the two
  machines and of the file server are apart. A stopped (SIGSTOP) process looks dead, and alive again when it goes on.

The file is opened to look at it: NFS promises fresh attributes then, and only then.
"""

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from brasyn_dist.common.files import atomic_write_text
from brasyn_dist.common.processes import machine, started

Clock = Callable[[], float]

BEATS = 12
"""Touches of the file in the time after which its owner counts as dead: several may get lost or come late."""
LEFT = ".left"


@dataclass(frozen=True)
class Worker:
    """One process at work in one round; the content of its file."""

    name: str
    machine: str
    """Boot and process namespace: where these are the same, process numbers mean the same."""
    pid: int
    started: str
    """When the kernel started the process: numbers are used again."""
    job: str
    """The same for processes that were started together."""
    basis: str
    """Hash of what its records depend on beside the item."""
    work: str
    """Hash of all that is to be done: workers of one round must agree."""


def this_worker(job: str, basis: str, work: str) -> Worker:
    pid = os.getpid()
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
    name = f"{host}-{pid}-{uuid.uuid4().hex[:6]}"
    return Worker(name, machine(), pid, started(pid) or "", job, basis, work)


class Crew:
    """The workers of a round, seen by one of them."""

    def __init__(self, folder: Path, lease: float, clock: Clock) -> None:
        self._folder, self._lease, self._clock = folder, lease, clock
        self._known: dict[str, Worker] = {}
        self._seen: dict[str, tuple[int, float]] = {}

    def enter(self, worker: Worker) -> None:
        atomic_write_text(self._folder / worker.name, json.dumps(asdict(worker)))

    def leave(self, name: str) -> None:
        """What the worker holds is anybody's from now on."""
        with suppress(OSError):  # the round may be over
            (self._folder / name).rename(self._folder / (name + LEFT))

    def beat(self, name: str) -> None:
        """A sign of life. Raises FileNotFoundError if the round is over."""
        os.utime(self._folder / name)

    def names(self) -> list[str]:
        """All who ever entered."""
        with suppress(FileNotFoundError):
            found = (p.name for p in self._folder.iterdir() if not p.name.startswith("."))
            return sorted({n.removesuffix(LEFT) for n in found})
        return []

    def get(self, name: str) -> Worker | None:
        if name not in self._known:
            for path in (self._folder / name, self._folder / (name + LEFT)):
                with suppress(OSError, ValueError, TypeError):
                    self._known[name] = Worker(**json.loads(path.read_text()))
                    break
        return self._known.get(name)

    def present(self, name: str) -> bool:
        """Whether its file is there: neither left nor swept away with its round."""
        return self._last_beat(name) is not None

    def left(self, name: str) -> bool:
        """Whether it went in good order."""
        return (self._folder / (name + LEFT)).exists()

    def gone(self, name: str) -> bool:
        """Known to be dead, without any waiting."""
        worker = self.get(name)
        if not self.present(name):
            return True
        same = worker is not None and worker.machine and worker.machine == machine()
        return bool(same) and worker is not None and started(worker.pid) != worker.started

    def dead(self, name: str) -> bool:
        """Gone, or without a sign of life for `lease` seconds of watching it."""
        return self.gone(name) or self.silent(name, self._last_beat(name) or 0)

    def silent(self, name: str, beat: int) -> bool:
        """Whether `beat` has been the same for `lease` seconds, as far as looked at."""
        known = self._seen.get(name)
        if known is None or known[0] != beat:
            self._seen[name] = (beat, self._clock())
            return False
        return self._clock() - known[1] >= self._lease

    def moved(self, name: str) -> bool:
        """Whether there was a sign of life since the first look at it."""
        beat, known = self._last_beat(name), self._seen.get(name)
        return known is not None and beat is not None and known[0] != beat

    def _last_beat(self, name: str) -> int | None:
        try:
            handle = os.open(self._folder / name, os.O_RDONLY)
        except OSError:
            return None
        try:
            return os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)


class Heart:
    """A thread that beats while its process lives."""

    def __init__(self, beat: Callable[[], None], lease: float) -> None:
        self._beat, self._pause = beat, lease / BEATS
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            try:
                self._beat()
            except FileNotFoundError:
                return  # the round is over
            except OSError:
                continue  # a file server that is away for a moment

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
