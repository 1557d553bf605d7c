"""Counting what a computation needs, and measuring what the device gives: operations, bytes, ceilings."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class ByteCounter(TorchDispatchMode):
    """Bytes that each operator reads and writes, were every one to go to memory: the traffic of unfused execution.

    Views move nothing and are left out. Fused kernels and caches move less than this; nothing eager moves less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, result))
                if isinstance(leaf, Tensor)
            )
        return result


def count(work: Callable[[], Any]) -> tuple[int, int]:
    """(floating-point operations of matrix products and convolutions, bytes of unfused traffic) of one call."""
    with FlopCounterMode(display=False) as operations:
        work()
    with ByteCounter() as traffic:
        work()
    return operations.get_total_flops(), traffic.bytes


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of `repeats` calls after one: CPU seconds on a CPU, which others may share, wall seconds on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    work()
    times = []
    for _ in range(repeats):
        synchronise(device)
        begun = clock()
        work()
        synchronise(device)
        times.append(clock() - begun)
    return times


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """What the device reaches at its best: (operations a second of a large matrix product, bytes a second of a copy)."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device, repeats=5))
    source = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = min(seconds(lambda: target.copy_(source), device, repeats=5))
    return 2 * size**3 / best, 2 * source.numel() / copied
