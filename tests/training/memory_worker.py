"""Two updates in a process of its own; prints the bytes by which its resident memory grew at the highest.

python -m tests.training.memory_worker section.key=value ...
"""

import sys
from pathlib import Path

from tests.training.small import Update, small_config


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    config = small_config(*sys.argv[1:])
    Update(small_config())()  # loads libraries and kernels, which are no tensors
    before = status("VmRSS")
    update = Update(config)
    for k in range(2):
        update(k)
    print(status("VmHWM") - before)
