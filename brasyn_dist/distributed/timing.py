"""Time of the parts of a step, measured without waiting for the device.

    with clock.phase("generator"): ...     CUDA: events on the stream; CPU: the clock of the host
    clock.ready() ... clock.exchanged()    last gradients complete ... backward returns: "communication"
    clock.take()                           seconds by name since the last call

"communication" is the time in which this rank has no gradients to compute and waits for the exchange, or for
slower ranks. Exchange that overlaps with backward is not included. The time is part of the phase of that
backward.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

COMMUNICATION = "communication"


class PhaseClock:
    """Times of one process by phase."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._ready: Any = None

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the enclosed code as phase `name`."""
        begun = self._mark()
        yield
        self._spans.append((name, begun, self._mark()))

    def ready(self) -> None:
        """Called before a bucket of gradients is exchanged. The last call in a backward counts."""
        self._ready = self._mark()

    def exchanged(self) -> None:
        """Called when backward has returned."""
        if self._ready is not None:
            self._spans.append((COMMUNICATION, self._ready, self._mark()))
            self._ready = None

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call. On CUDA this waits for the end of the phases."""
        seconds: dict[str, float] = {}
        for name, begun, ended in self._spans:
            if self._cuda:
                ended.synchronize()
                elapsed = begun.elapsed_time(ended) / 1000
            else:
                elapsed = ended - begun
            seconds[name] = seconds.get(name, 0.0) + elapsed
        self._spans = []
        return seconds


def timed_all_reduce(clock: PhaseClock, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Communication hook: the exchange of DistributedDataParallel, bit-identical, with a mark at its start.

    DistributedDataParallel multiplies by the reciprocal of the world size. `default_hooks.allreduce_hook`
    divides, which rounds differently if the world size is not a power of two.
    """
    clock.ready()
    gradients = bucket.buffer()
    gradients.mul_(1.0 / dist.get_world_size())
    future = dist.all_reduce(gradients, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
