"""Stop requests: SIGTERM, SIGUSR1 or a STOP file. The trainer then saves a checkpoint and exits.

A signal can reach some processes only (launchers forward SIGTERM but end on SIGUSR1), so every rank reads its
own flag and the ranks agree after each step (`ProcessGroup.any`).
"""

import os
import signal
from pathlib import Path
from types import FrameType

from brasyn_dist.common.processes import STOP, signal_when_parent_dies

FINISHED = 0
"""Exit status of a run that has reached its last step; see also common.processes.STOPPED."""

STOP_FILE = "STOP"
USER_REQUEST = f"{STOP_FILE} file"
"""Reason of a stop by `touch STOP`. Programs that create the file write another reason into it."""
BATCH_JOB = "Slurm job"
"""Beginning of the reasons that a batch script writes."""


def remove_stale_request(run_dir: Path) -> None:
    """Remove a STOP file that a batch script wrote after its run had ended."""
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
    """Stop request to this process. Installed once, in the main thread."""

    def __init__(self, run_dir: Path, is_main: bool) -> None:
        self._file = run_dir / STOP_FILE if is_main else None
        self._signal: int | None = None
        if "LOCAL_RANK" in os.environ:
            # The workers of a launcher that is killed (for example by SIGUSR1) must save and end.
            signal_when_parent_dies(signal.SIGTERM)
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        STOP.requested = True

    @property
    def reason(self) -> str | None:
        """Reason to stop, or None."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        if self._file is not None and self._file.exists():
            return read_request(self._file)
        return None

    def fulfilled(self) -> None:
        """Remove the STOP file, so that the same command continues. Called when the checkpoint is saved."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def close(self) -> None:
        """Restore the previous signal handlers."""
        STOP.requested = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
