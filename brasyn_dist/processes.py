"""Process trees on Linux: launchers start workers in sessions of their own, which signals to a process group do not reach."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def descendants(pid: int) -> list[int]:
    """Process numbers of all children, their children, and so on."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, as a node that goes down does. The root is stopped first: it starts no more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    for process in [*descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Have the kernel send `number` to this process when its parent ends, however that ends. Does nothing outside Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
