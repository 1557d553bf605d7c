"""Processes on Linux: process trees, signals, and the end of a process.

Launchers start workers in separate sessions. A signal to a process group does not reach these, so trees are
walked.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import NoReturn

import psutil

STOPPED = 75
"""Exit status of work that stopped on request; the same command continues it (EX_TEMPFAIL). Launchers report
it as 1."""
STOP = SimpleNamespace(requested=False)
"""Set by a stop request: transfers end at once. A plain value, since signal handlers may not take locks."""
EXIT_SECONDS = 60.0
"""Most seconds that threads and exit handlers may take when a process ends."""
_PR_SET_PDEATHSIG = 1


def descendants(pid: int) -> list[int]:
    """Process numbers of all children, their children, and so on; empty if the process has ended."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants.

    The root is stopped first, so that it starts no further process.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    for process in [*descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Let the kernel send `number` to this process when its parent ends for any reason.

    Does nothing outside Linux.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


@contextlib.contextmanager
def starting_up() -> Iterator[None]:
    """Context without garbage collection. Objects that exist at its end are excluded from later collections.

    The import of torch creates hundreds of thousands of objects that stay. Repeated scans of these took a
    quarter of the start of a process (2.7 s instead of 2.0 s of CPU time).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def ending_on_signals(status: int) -> Iterator[None]:
    """Context in which SIGTERM and SIGUSR1 raise SystemExit(`status`) in the main thread.

    A worker of a launcher also ends when the launcher is killed. In other threads the context has no effect.
    """

    def end(number: int, frame: FrameType | None) -> None:
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        raise SystemExit(status)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if "LOCAL_RANK" in os.environ:
        signal_when_parent_dies(signal.SIGTERM)
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_and_leave(main: Callable[[], int]) -> NoReturn:
    """End this process with the status of `main()`, without the destruction of objects at interpreter exit.

    gloo's C++ threads can hold the last reference to a tensor while the interpreter is finalised. They then
    request the interpreter lock, which ends their thread and aborts the process (SIGABRT, "terminate called
    without an active exception"). Before this function existed, 2 of 14 runs of 3 processes failed in this
    way after all work was done.

    The other steps of an interpreter exit are done: thread pools shut down, non-daemon threads are joined (a
    checkpoint that is being written), exit handlers run, and output is flushed. After `EXIT_SECONDS` the
    process ends in any case: a tracker without network waits for ever.
    """
    try:
        code = main()
    except SystemExit as request:
        if isinstance(request.code, str):
            print(request.code, file=sys.stderr)
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    limit = threading.Timer(EXIT_SECONDS, _leave, (code,))
    limit.daemon = True
    limit.start()
    # The interpreter itself calls this. It runs the exit functions of concurrent.futures before it joins
    # threads: the threads of an open pool (torch.compile keeps one) wait for these functions.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    _leave(code)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def available_processors(most: int = 2**20) -> int:
    """Processors that this process may use, at most `most`. A batch job often has a part of its node."""
    return min(most, len(os.sched_getaffinity(0)))


def machine() -> str:
    """Identifier that differs between machines, boots and containers; empty if it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """Start of a process in ticks since boot; None if it has ended."""
    try:
        # The name is in brackets and can contain any character. State is the first field after it, start the
        # twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
