"""Two updates in a process of its own; prints the bytes by which its resident memory grew at the highest.

python -m tests.training.memory_worker [volume | refiner] section.key=value ...
"""

import sys
from pathlib import Path

from tests.training import small, volumes


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1] in volumes.TASKS:
        first, update = (volumes.small_config(sys.argv[1], *more) for more in ((), sys.argv[2:]))
        volumes.Update(first)()
        before = status("VmRSS")
        volume_update = volumes.Update(update)
        for _ in range(2):
            volume_update()
    else:
        small.Update(small.small_config())()  # loads libraries and kernels, which are no tensors
        before = status("VmRSS")
        slice_update = small.Update(small.small_config(*sys.argv[1:]))
        for k in range(2):
            slice_update(k)
    print(status("VmHWM") - before)
