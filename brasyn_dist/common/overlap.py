"""Reading and writing while the calling thread computes: one item ahead and one item behind.

For a loop over cases:

    with read_ahead(read(item) for item in items) as read_items, WriteBehind() as writer:
        for item in read_items:                  # the next one is read meanwhile
            writer.submit(write, compute(item))  # the last one is written meanwhile
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_END: Any = object()


@contextmanager
def read_ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The items, each computed by a thread while the one before it is in use. Never more than one ahead."""
    pool = ThreadPoolExecutor(1, "reader")

    def ahead() -> Iterator[T]:
        upcoming = pool.submit(next, items, _END)
        while (item := upcoming.result()) is not _END:
            upcoming = pool.submit(next, items, _END)
            yield item

    try:
        yield ahead()
    finally:
        # After an exception, `items` may wait for other processes: the thread is not waited for.
        pool.shutdown(wait=False, cancel_futures=True)


class WriteBehind:
    """Context manager that runs one call at a time in a thread; the next call or the end raises its error."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None

    def submit(self, write: Callable[[T], None], item: T) -> None:
        """Start `write(item)` when the last call has ended."""
        self._wait()
        self._last = self._pool.submit(write, item)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
        finally:
            self._pool.shutdown()
