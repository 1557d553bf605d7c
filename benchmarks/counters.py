"""Counting what a computation needs, and measuring what the device gives: operations, bytes, ceilings."""

import time
from collections.abc import Callable, Iterator
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


def seconds(work: Callable[[], Any], device: torch.device, repeats: int, warmup: int = 1) -> list[float]:
    """Wall seconds of `repeats` calls after `warmup` uncounted ones."""
    for _ in range(warmup):
        work()
    return list(_timed(work, device, repeats))


def _timed(work: Callable[[], Any], device: torch.device, repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        yield time.perf_counter() - begun


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """What the device reaches at its best: (operations a second of a large matrix product, bytes a second of a copy)."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device, repeats=5))
    source = torch.empty(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = min(seconds(lambda: target.copy_(source), device, repeats=5))
    return 2 * size**3 / best, 2 * source.numel() / copied
