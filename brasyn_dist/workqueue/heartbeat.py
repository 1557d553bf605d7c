"""Worker liveness: heartbeat files and a lease timeout.

Every worker has a file, which a thread of the worker touches at regular intervals. Another process considers
a worker dead

- at once, if the worker has left, or if it was a process of this machine and that process has ended;
- otherwise, if its file did not change for `lease` seconds of the observer's own monotonic clock. The clocks
  of the machines and of the file server are never compared. A stopped process (SIGSTOP) appears dead, and
  alive again when it continues.

The file is opened before its time is read, because NFS guarantees fresh attributes only after opening.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from brasyn_dist.common.files import atomic_write_text
from brasyn_dist.common.processes import machine, started

HEARTBEATS_PER_LEASE = 12
"""Several heartbeats may be lost or late before the lease ends."""
LEFT = ".left"
"""Suffix of the file of a worker that has left in an orderly way."""


@dataclass(frozen=True)
class Worker:
    """One process in one pass; the content of its heartbeat file."""

    name: str
    machine: str
    """Boot and process namespace: process numbers are comparable where this is equal."""
    pid: int
    started: str
    """Start time of the process in kernel ticks, because process numbers are reused."""
    job: str | None
    basis: str
    """Hash of what a record depends on beside its item."""
    settings: str
    """Hash of everything that all workers of a pass must agree on."""
    details: dict[str, Any] = field(default_factory=dict)
    """Facts about the process for the merged result (JSON)."""


def this_worker(job: str | None, basis: str, settings: str, details: dict[str, Any]) -> Worker:
    """A worker with a new name for this process."""
    pid = os.getpid()
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
    name = f"{host}-{pid}-{uuid.uuid4().hex[:6]}"
    return Worker(name, machine(), pid, started(pid) or "", job, basis, settings, details)


class Workers:
    """The workers of a pass, as one process observes them."""

    def __init__(self, folder: Path, lease: float) -> None:
        self._folder, self._lease = folder, lease
        self._known: dict[str, Worker] = {}
        self._observed: dict[str, tuple[int, float]] = {}

    def register(self, worker: Worker) -> None:
        """Write a worker's file."""
        atomic_write_text(self._folder / worker.name, json.dumps(asdict(worker)))

    def leave(self, name: str) -> None:
        """Mark the worker as left: other workers may take its claims at once."""
        with suppress(OSError):  # the pass may have ended
            (self._folder / name).rename(self._folder / (name + LEFT))

    def names(self) -> list[str]:
        """All workers that ever joined the pass."""
        with suppress(FileNotFoundError):
            found = (p.name for p in self._folder.iterdir() if not p.name.startswith("."))
            return sorted({name.removesuffix(LEFT) for name in found})
        return []

    def get(self, name: str) -> Worker | None:
        """A worker by name, also one that has left; None if it is unknown."""
        if name not in self._known:
            for path in (self._folder / name, self._folder / (name + LEFT)):
                with suppress(OSError, ValueError, TypeError):
                    self._known[name] = Worker(**json.loads(path.read_text()))
                    break
        return self._known.get(name)

    def all(self) -> list[Worker]:
        """All workers that have not left."""
        return [worker for name in self.names() if (worker := self.get(name)) is not None]

    def present(self, name: str) -> bool:
        """Whether the worker's file exists: it has not left, and the pass has not ended."""
        return self._last_heartbeat(name) is not None

    def has_left(self, name: str) -> bool:
        """Whether the worker has left by itself."""
        return (self._folder / (name + LEFT)).exists()

    def has_ended(self, name: str) -> bool:
        """Whether the worker is known to be gone without waiting for the lease."""
        worker = self.get(name)
        if worker is None or not self.present(name):
            return not self.present(name)
        return bool(worker.machine) and worker.machine == machine() and started(worker.pid) != worker.started

    def is_dead(self, name: str) -> bool:
        """Whether the worker has ended or its lease has run out."""
        return self.has_ended(name) or self.unchanged(name, self._last_heartbeat(name) or 0)

    def unchanged(self, name: str, value: int) -> bool:
        """Whether `value` of `name` has been observed unchanged for the duration of the lease."""
        known = self._observed.get(name)
        if known is None or known[0] != value:
            self._observed[name] = (value, time.monotonic())
            return False
        return time.monotonic() - known[1] >= self._lease

    def has_changed(self, name: str) -> bool:
        """Whether there was a heartbeat since the first observation."""
        heartbeat, known = self._last_heartbeat(name), self._observed.get(name)
        return known is not None and heartbeat is not None and known[0] != heartbeat

    def _last_heartbeat(self, name: str) -> int | None:
        with suppress(OSError), (self._folder / name).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
        return None


class Heartbeat:
    """A thread that touches a file until it is stopped or the file is removed."""

    def __init__(self, file: Path, lease: float) -> None:
        self._file, self._interval = file, lease / HEARTBEATS_PER_LEASE
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                os.utime(self._file)
            except FileNotFoundError:
                return  # the pass has ended
            except OSError:
                continue  # the file server does not answer at the moment

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()
        self._thread.join()
