"""`--workers N`: one command, N processes of this node that share its work.

In contrast to the processes of a launcher, they do not end each other: if one is killed, the others do its
work.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from brasyn_dist.common.files import os_error_text
from brasyn_dist.common.launch_environment import LaunchContext
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.processes import ending_on_signals, signal_when_parent_dies
from brasyn_dist.errors import BrasynError

log = logging.getLogger(__name__)


@contextmanager
def worker_processes(
    workers: int, context: LaunchContext, target: Callable[[Any, LaunchContext], object], options: Any
) -> Iterator[LaunchContext]:
    """Start `workers` - 1 more processes, which run `target(options, context)`. Gives this process' context.

    Waits for the processes at the end. Terminates them if an exception is raised.

    Args:
        workers: Number of processes, with this one.
        context: The context that this process was launched with.
        target: Importable function.
        options: Picklable value.
    """
    if workers <= 1:
        yield context
        return
    job = context.job or f"command-{uuid.uuid4().hex}"
    first, total = context.local_rank * workers, context.local_world_size * workers
    contexts = [LaunchContext(first + number, total, job) for number in range(workers)]
    # `spawn`: a forked child would inherit the threads and locks of the calling program.
    spawn = get_context("spawn")
    others = [
        spawn.Process(target=_run, args=(target, options, c, os.getpid()), name=f"worker-{c.local_rank}")
        for c in contexts[1:]
    ]
    for process in others:
        process.start()
    try:
        yield contexts[0]
    except BaseException:
        for process in others:
            process.terminate()
        raise
    finally:
        for process in others:
            process.join()


def _run(
    target: Callable[[Any, LaunchContext], object], options: Any, context: LaunchContext, parent: int
) -> None:
    signal_when_parent_dies(signal.SIGTERM)
    if os.getppid() != parent:  # the parent was killed while this process was starting
        return
    set_up_logging()
    with ending_on_signals(0):
        try:
            target(options, context)
        except (BrasynError, OSError) as error:
            text = os_error_text(error) if isinstance(error, OSError) else error
            log.error("worker %d: %s", context.local_rank, text)
            sys.exit(1)
