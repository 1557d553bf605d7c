"""Where a case's seconds go: named stages on one clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("read", "prepare", "network", "finish", "write")


class StageClock:
    """Adds up seconds by stage: `with clock("network"): ...`. Stages of one case may run in different threads, in turn."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
            # A GPU works on after the call has returned: without waiting, its time would be a later stage's.
            if self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun
