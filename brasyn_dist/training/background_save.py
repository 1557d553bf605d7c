"""Saving while training goes on: copy to host memory, then write in a thread.

    save()   waits for the write before it, copies every tensor (training stands still for this), starts the thread
    check()  raises the error of a write that failed
    wait()   returns when the last write is on disk

The thread calls `save_checkpoint`, so all that is promised of a checkpoint holds: killed at any moment, it is whole or absent.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brasyn_dist.training.checkpoint import save_checkpoint


class BackgroundSaver:
    """Writes checkpoints below `root`, one at a time; `after()` runs in the thread when one is complete."""

    def __init__(self, root: Path, after: Callable[[], None]) -> None:
        self._root = root
        self._after = after
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.write_seconds = 0.0
        """How long the last write took, beside training."""

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
        """Checkpoint `step`: the tensors may change as soon as this returns."""
        self.wait()
        copies = copy_to_host(tensors)
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, state), name=f"save-step-{step}", daemon=False
        )
        self._thread.start()

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
        begun = time.monotonic()
        try:
            save_checkpoint(self._root, step, tensors, state)
            self._after()
        except BaseException as error:  # raised in the main thread by check()
            self._error = error
        self.write_seconds = time.monotonic() - begun

    @property
    def failed(self) -> bool:
        """Whether a write has failed; `check` says why."""
        return self._error is not None

    def check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


def copy_to_host(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies in host memory; from a GPU all transfers are in flight together and waited for once."""
    cuda = any(t.is_cuda for group in tensors.values() for t in group.values())
    copies = {
        name: {
            key: torch.empty_like(t, device="cpu", pin_memory=t.is_cuda).copy_(t.detach(), non_blocking=True)
            for key, t in group.items()
        }
        for name, group in tensors.items()
    }
    if cuda:
        torch.cuda.synchronize()
    return copies
