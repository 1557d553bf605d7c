"""`python -m brasyn_dist.train_segmenter` is `brasyn train task=segmenter`."""

import sys

from brasyn_dist.cli.train import main
from brasyn_dist.common.processes import run_and_leave

if __name__ == "__main__":
    run_and_leave(lambda: main(["task=segmenter", *sys.argv[1:]]))
