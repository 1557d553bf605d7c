"""Independent pieces of work on several processes, with progress.

    for result in parallel_map("encode", function, items, workers=8): ...

The worker processes end with the calling process, also if it is killed: no worker writes files afterwards.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from signal import SIGKILL
from typing import Any, TypeVar

from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from brasyn_dist.common.processes import signal_when_parent_dies
from brasyn_dist.common.progress import Progress
from brasyn_dist.errors import BrasynError

T = TypeVar("T")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def parallel_map(
    what: str,
    work: Callable[[Any], T],
    items: Sequence[Any],
    workers: int = 1,
    weight: Callable[[Any], int] = lambda _: 1,
) -> Iterator[T]:
    """Results of `work` for all items, in the order in which they are ready.

    Args:
        what: Name of the work in the progress display.
        work: Picklable if `workers` is above 1.
        items: Arguments, one for each call of `work`.
        workers: Processes; 1: the calling process does the work.
        weight: Contribution of an item to the progress.

    Raises:
        BrasynError: A worker process was killed.
        Exception: Whatever `work` raises.
    """
    total = sum(map(weight, items))
    with Progress(what, total) as progress:
        done = 0
        for item, result in _results(work, items, workers):
            done += weight(item)
            progress.reach(done)
            yield result


def _results(work: Callable[[Any], T], items: Sequence[Any], workers: int) -> Iterator[tuple[Any, T]]:
    if min(workers, len(items)) <= 1:
        for item in items:
            yield item, work(item)
        return
    executor = ProcessPoolExecutor(
        min(workers, len(items)), initializer=_end_with_parent, initargs=(os.getpid(),), env=_ONE_THREAD
    )
    try:
        futures = {executor.submit(work, item): item for item in items}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
        executor.shutdown()
    except BaseException as error:
        executor.shutdown(kill_workers=True)
        if isinstance(error, TerminatedWorkerError):
            raise BrasynError(
                "a worker process was killed (out of memory?); run the same command again, with "
                "fewer --workers"
            ) from None
        raise


def _end_with_parent(parent: int) -> None:
    """Have this worker killed when its parent ends, also if that happened while the worker was starting."""
    signal_when_parent_dies(SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
