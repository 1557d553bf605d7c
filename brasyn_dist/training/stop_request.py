"""Asking a run to stop: SIGTERM, SIGUSR1 or a STOP file; the trainer saves a checkpoint and exits.

Signals reach some processes only (a launcher forwards SIGTERM, dies of SIGUSR1, and Slurm signals what it likes), so every
rank looks at its own flag and the ranks agree after each step (`Distributed.any`).
"""

import os
import signal
from pathlib import Path
from types import FrameType

from brasyn_dist.common.processes import signal_when_parent_dies

FINISHED = 0
FAILED = 1
STOPPED = 75
"""Exit status of a run that was asked to stop and can be continued (EX_TEMPFAIL); launchers report it as 1."""

STOP_FILE = "STOP"
USER_REQUEST = f"{STOP_FILE} file"
"""Reason of a stop that a person asked for by `touch STOP`; whoever else makes the file writes the reason into it."""
BATCH_JOB = "Slurm job"
"""What a reason begins with that a batch script wrote."""


def remove_stale_request(run_dir: Path) -> None:
    """Remove a STOP file that a batch script wrote when its run had ended already: it was not meant for the next one."""
    path = run_dir / STOP_FILE
    if path.exists() and read_request(path).startswith(BATCH_JOB):
        path.unlink(missing_ok=True)


def read_request(path: Path) -> str:
    """First line of a STOP file; `USER_REQUEST` if it is empty."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        lines = []
    return lines[0] if lines and lines[0].strip() else USER_REQUEST


class StopRequest:
    """This process' wish to stop. Install once, in the main thread."""

    def __init__(self, run_dir: Path, is_main: bool) -> None:
        self._file = run_dir / STOP_FILE if is_main else None
        self._signal: int | None = None
        if "LOCAL_RANK" in os.environ:
            # A launcher that is killed (by SIGUSR1, say) leaves its workers behind: they shall save and end, too.
            signal_when_parent_dies(signal.SIGTERM)
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._file is not None and self._file.exists():
            return read_request(self._file)
        return None

    def fulfilled(self) -> None:
        """The checkpoint is safe: remove the STOP file, so that the same command continues."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def close(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
