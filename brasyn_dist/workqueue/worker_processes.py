"""`--workers N`: one command, N processes of this node that share its work.

Unlike a launcher's, they do not die with each other: when one is killed the others, this one among them, do its work.
"""

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from brasyn_dist.common.launch_environment import Place
from brasyn_dist.common.processes import ending_on_signals, signal_when_parent_dies
from brasyn_dist.errors import BrasynError


@contextmanager
def helpers(
    workers: int, place: Place, target: Callable[[Any, Place], object], options: Any
) -> Iterator[Place]:
    """This process' place among `workers` processes, the others of which run `target(options, place)` meanwhile.

    `target` and `options` must be importable and picklable. Waits for the others at the end; stops them if an exception comes.
    """
    if workers <= 1:
        yield place
        return
    job = place.job or f"command-{uuid.uuid4().hex}"
    # `spawn`: a forked child would inherit the threads and locks of whoever called us.
    context = get_context("spawn")
    first, world = place.local_rank * workers, place.local_world * workers
    places = [Place(first + number, world, job) for number in range(workers)]
    others = [
        context.Process(target=_run, args=(target, options, p, os.getpid()), name=f"worker-{p.local_rank}")
        for p in places[1:]
    ]
    for process in others:
        process.start()
    try:
        yield places[0]
    except BaseException:
        for process in others:
            process.terminate()
        raise
    finally:
        for process in others:
            process.join()


def _run(target: Callable[[Any, Place], object], options: Any, place: Place, parent: int) -> None:
    """End with the parent, even if that has been killed while this process was starting."""
    signal_when_parent_dies(signal.SIGTERM)
    if os.getppid() != parent:
        return
    with ending_on_signals(0):
        try:
            target(options, place)
        except BrasynError as error:
            print(f"error: worker {place.local_rank}: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
