"""What the device reaches at its best: operations of a large matrix product, bytes of a large copy. Prints one JSON line.

python benchmarks/ceilings.py
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of five calls after one: CPU seconds on a CPU, which others may share, wall seconds on a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    work()
    times = []
    for _ in range(5):
        synchronise(device)
        begun = clock()
        work()
        synchronise(device)
        times.append(clock() - begun)
    return min(times)


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(operations a second of a matrix product with the current TF32 setting, bytes a second of a copy, read and written)."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = fastest(lambda: a @ b, device)
    source = torch.ones(2**30 if cuda else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = fastest(lambda: target.copy_(source), device)
    return 2 * size**3 / product, 2 * source.numel() / copy


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row: dict[str, Any] = {"device": "CPU", "torch": torch.__version__, "python": sys.version.split()[0]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row |= {"device": properties.name, "memory_gib": properties.total_memory / 2**30}
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    for name, tf32, dtype in (
        ("fp32", False, torch.float32), ("tf32", True, torch.float32), ("bf16", False, torch.bfloat16)
    ):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        operations, row["bytes_per_second"] = ceilings(device, dtype)
        row[f"{name}_operations_per_second"] = operations
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
