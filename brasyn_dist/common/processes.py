"""Processes on Linux: trees of them (launchers start workers in sessions of their own, which signals to a process group do not
reach), and how to leave one for good."""

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
from types import FrameType
from typing import NoReturn

STOPPED = 75
"""Exit status of work that was asked to stop and that the same command continues (EX_TEMPFAIL); launchers report it as 1."""
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


@contextlib.contextmanager
def starting_up() -> Iterator[None]:
    """No garbage collection within; what was made there is never searched for garbage later.

    Importing torch makes hundreds of thousands of objects, all of which stay: looking through them again and again takes a
    quarter of a process' start (2.7 instead of 2.0 s of CPU on the machine where this was measured).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def ending_on_signals(status: int) -> Iterator[None]:
    """Within, SIGTERM and SIGUSR1 end the main thread's work by SystemExit(`status`): what it holds is given back properly.

    A launcher that is killed leaves its workers behind: they end then, too. In other threads nothing is changed.
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
    """End this process with the status of `main()`, without taking the interpreter apart.

    gloo's C++ threads may hold the last reference to a tensor when the interpreter is finalised. Asking for the interpreter
    lock then ends their thread and aborts the process (SIGABRT, "terminate called without an active exception"): two of
    fourteen runs of three processes failed so after all their work was done. Threads that must finish (a checkpoint being
    written) are waited for, and exit handlers run; what is left out is the destruction of objects.
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
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def machine() -> str:
    """Differs between machines, boots and containers; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """Start of a process in ticks since boot; None if it has ended."""
    try:
        # The name, in brackets, may hold anything; state is the first field after it, start the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
