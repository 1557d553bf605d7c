"""Where the time of a step goes, measured without waiting for the device.

    with clock.phase("generator"): ...     CUDA: an event before and after, on the stream; CPU: the host's clock
    clock.ready() ... clock.exchanged()    the last gradients are handed over ... backward returns: "communication"
    clock.take()                           seconds by name since the last call

"communication" is what gradient exchange costs: the time in which this rank has no gradients left to compute and waits for
the exchange, and for slower ranks. What overlaps with backward is not in it. It lies within the phase whose backward it ends.
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
    """Times of one process; names of phases are the caller's."""

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
        begun = self._mark()
        yield
        self._spans.append((name, begun, self._mark()))

    def ready(self) -> None:
        """A bucket of gradients is about to be exchanged; the last call of a backward counts."""
        self._ready = self._mark()

    def exchanged(self) -> None:
        """Backward has returned."""
        if self._ready is not None:
            self._spans.append((COMMUNICATION, self._ready, self._mark()))
            self._ready = None

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call. On CUDA, call it when the device's results have been waited for anyway."""
        seconds: dict[str, float] = {}
        for name, begun, ended in self._spans:
            if self._cuda:
                ended.synchronize()  # returns at once: see above
                elapsed = begun.elapsed_time(ended) / 1000
            else:
                elapsed = ended - begun
            seconds[name] = seconds.get(name, 0.0) + elapsed
        self._spans = []
        return seconds


def timed_all_reduce(clock: PhaseClock, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's own exchange as a communication hook that notes when it starts; same arithmetic, bit for bit.

    (C++ multiplies by the reciprocal of the world size; `default_hooks.allreduce_hook` divides, which rounds differently
    where the world size is no power of two.)
    """
    clock.ready()
    gradients = bucket.buffer()
    gradients.mul_(1.0 / dist.get_world_size())
    future = dist.all_reduce(gradients, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
