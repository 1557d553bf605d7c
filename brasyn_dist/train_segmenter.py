"""Train a segmenter: `brasyn_dist.train` with `task=segmenter`."""

import sys

from brasyn_dist.common.processes import run_and_leave
from brasyn_dist.train import main as train


def main(arguments=None) -> int:
    return train(["task=segmenter", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    run_and_leave(main)
