"""Overlap of reading, computing and writing: an iterator that is evaluated ahead, and calls that run behind.

with Prefetcher(read(item) for item in items) as loaded, BackgroundWriter() as writer:
    for value in loaded:                          # the next item is read meanwhile, in a thread
        writer.submit(write, compute(value))      # runs in another thread, one call at a time
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END: Any = object()


class Prefetcher(Generic[T]):
    """Iterates over `elements` and evaluates one element ahead, in a thread: memory is bounded."""

    def __init__(self, elements: Iterable[T]) -> None:
        self._elements = iter(elements)
        self._pool = ThreadPoolExecutor(1, "prefetcher")
        self._next = self._submit()

    def _submit(self) -> Future[T]:
        return self._pool.submit(next, self._elements, _END)

    def __iter__(self) -> Iterator[T]:
        while (element := self._next.result()) is not _END:
            self._next = self._submit()
            yield element

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *exception: object) -> None:
        # After an exception, `elements` may wait for other processes: it is not waited for.
        self._pool.shutdown(wait=False, cancel_futures=True)


class BackgroundWriter:
    """Runs calls in a thread, one at a time. `submit` waits until the previous call has returned."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._last: Future[None] | None = None

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run the function in the thread. Raises what the previous call has raised."""
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(function, *arguments)

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self._pool.shutdown(wait=True)
        if self._last is not None and kind is None:
            self._last.result()
