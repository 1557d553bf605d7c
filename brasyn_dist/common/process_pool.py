"""Independent pieces of work on several processes, with progress.

    with worker_pool(8) as pool:
        for result in pool.run("encode", function, items): ...

Results come in any order: whoever needs an order sorts them. Workers end with their parent, so that a killed program leaves
nobody behind who still writes.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from signal import SIGKILL
from typing import Any, TypeVar

from brasyn_dist.common.processes import signal_when_parent_dies
from brasyn_dist.errors import BrasynError

T = TypeVar("T")
LINES = 4
"""Progress lines for each piece of work where there is no terminal."""


class Pool:
    """Worker processes; with None, the calling process does the work itself."""

    def __init__(self, executor: ProcessPoolExecutor | None, workers: int) -> None:
        self._executor = executor
        self.workers = workers

    def run(
        self,
        what: str,
        work: Callable[[Any], T],
        items: Sequence[Any],
        weight: Callable[[Any], int] = lambda _: 1,
    ) -> Iterator[T]:
        """Results as they come. `weight` is what an item counts in the progress shown.

        Raises what `work` raises, and BrasynError if a worker process was killed.
        """
        from tqdm import tqdm

        total = sum(map(weight, items))
        with tqdm(total=total, desc=what, disable=None) as bar:
            done = said = 0
            for item, result in self._results(work, items):
                done += weight(item)
                bar.update(weight(item))
                if bar.disable and (done == total or done - said >= total / LINES):
                    print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)
                    said = done
                yield result

    def _results(self, work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[tuple[Any, T]]:
        if self._executor is None:
            for item in items:
                yield item, work(item)
            return
        try:
            futures = {self._executor.submit(work, item): item for item in items}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise BrasynError(
                "a worker process was killed (out of memory?); run the same command again, with fewer --workers"
            ) from None


def available_processors(most: int) -> int:
    """Processors that this process may use, but not more than `most`: what a login node has is not all ours."""
    return min(most, len(os.sched_getaffinity(0)))


@contextmanager
def worker_pool(workers: int) -> Iterator[Pool]:
    """A pool of `workers` processes; one means this process."""
    if workers <= 1:
        yield Pool(None, 1)
        return
    # `spawn`: a forked child would inherit the threads and locks of whoever called us.
    executor = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
    )
    with _one_thread_each(), executor:
        try:
            yield Pool(executor, workers)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started within use one thread for linear algebra: with one for each processor, they would fight."""
    before = {
        name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end_with(parent: int) -> None:
    """Tie a worker's life to its parent's, even if that has been killed while the worker was starting."""
    signal_when_parent_dies(SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
