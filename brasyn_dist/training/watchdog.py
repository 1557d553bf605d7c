"""Detection of hanging processes, with their stacks, before the collective timeout ends the job.

    beat("step 12")  -- no other beat for `seconds` -->  stacks of all threads to this rank's log
                                                         hang-rank-N.json beside it: this rank waits, with its
                                                         last activity
                     -- a little later --------------->  the first waiting rank lists waiting and silent ranks

A rank that waits for another one can report where it waits. The cause often cannot (it is stopped, or has
ended). For silent processes on the same host the report therefore contains their state in the kernel. If no
Python code can run (the interpreter lock is held), the thread of faulthandler writes the stacks, somewhat
later.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

import psutil

from brasyn_dist.common.files import read_json, write_json

_STATES = {
    psutil.STATUS_STOPPED: "stopped by a signal (SIGCONT continues it)",
    psutil.STATUS_DISK_SLEEP: "waiting for a disk or file server",
}
"""Explanations of states in the kernel; the others are `running`, `sleeping`, `zombie`, ..."""


@dataclass(frozen=True)
class Peer:
    """A process of the run."""

    rank: int
    pid: int
    host: str

    @classmethod
    def here(cls, rank: int) -> "Peer":
        """This process."""
        return cls(rank, os.getpid(), socket.gethostname())

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def state(self) -> str:
        """Its state in the kernel of this host."""
        if self.host != socket.gethostname():
            return "on another node: look there"
        try:
            state = psutil.Process(self.pid).status()
        except psutil.NoSuchProcess:
            return "gone"
        return _STATES.get(state, state)


class Watchdog:
    """Watches its own process from a thread. A context manager.

    Args:
        log: Receives the stacks.
        folder: Folder of the hang files.
        me: This process.
        peers: All processes of the run.
        seconds: Time without progress after which a hang is reported.
    """

    def __init__(self, log: TextIO, folder: Path, me: Peer, peers: Sequence[Peer], seconds: float) -> None:
        self._log, self._folder, self._me, self._peers = log, folder, me, peers
        self._seconds = seconds
        self._doing, self._beat, self._armed = "starting", time.monotonic(), -seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._withdraw()
        self.beat("starting")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._withdraw()

    def beat(self, doing: str) -> None:
        """Report progress and the present activity. Takes microseconds."""
        self._doing, self._beat = doing, time.monotonic()
        if self._beat - self._armed > self._seconds / 10:
            self._armed = self._beat
            # The thread of this object reports first, unless it cannot run.
            faulthandler.dump_traceback_later(1.5 * self._seconds, file=self._log)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            beat = self._beat
            if time.monotonic() - beat > self._seconds:
                self._report(beat)
                while self._beat == beat and not self._ended.wait(0.2):
                    pass
                self._withdraw()

    def _hang_file(self, rank: int) -> Path:
        return self._folder / f"hang-rank-{rank}.json"

    def _withdraw(self) -> None:
        with contextlib.suppress(OSError):
            self._hang_file(self._me.rank).unlink(missing_ok=True)

    def _report(self, beat: float) -> None:
        doing = self._doing
        self._say(
            f"{self._me} made no progress for {time.monotonic() - beat:.0f} s; last: {doing}. Stacks follow."
        )
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(self._log, all_threads=True)
        faulthandler.cancel_dump_traceback_later()
        self._armed = -self._seconds
        with contextlib.suppress(OSError):
            write_json(
                self._hang_file(self._me.rank), {**asdict(self._me), "doing": doing, "time": time.time()}
            )
        # The last beats of different ranks are up to a step apart.
        if self._ended.wait(self._seconds / 4) or self._beat != beat:
            return
        waiting = {p.rank: last for p in self._peers if (last := self._activity(p)) is not None}
        if waiting and min(waiting) == self._me.rank:
            verdict = hang_verdict(self._peers, waiting)
            self._say(verdict)
            print(verdict, file=sys.stderr, flush=True)

    def _activity(self, peer: Peer) -> str | None:
        """Last activity of a hanging peer; None if it has not reported a hang."""
        return read_json(self._hang_file(peer.rank)).get("doing")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()


def hang_verdict(peers: Sequence[Peer], waiting: dict[int, str]) -> str:
    """Text with the waiting ranks (`waiting`: rank -> last activity) and the silent ones."""
    lines = ["the run hangs: " + "; ".join(f"rank {r} since {doing}" for r, doing in sorted(waiting.items()))]
    silent = [p for p in peers if p.rank not in waiting]
    lines += [f"  {p} does not answer: {p.state()}" for p in silent]
    if not silent:
        lines.append("  all ranks answer: compare their stacks")
    lines.append("  Python stacks are in logs/rank-*.log")
    return "\n".join(lines)
