"""Train a segmenter: `accelerate launch ... -m brasyn_dist.train_segmenter --config configs/segmenter.yaml [section.key=value ...]`.

On the same shards, and with the same checkpoints, resume and files, as brasyn_dist.train.
To continue an interrupted run, run the same command again.
Exit status: 0 finished, 75 stopped on request (the same command continues), 1 failed.
"""

from collections.abc import Sequence

from brasyn_dist.common.processes import run_and_leave, starting_up
from brasyn_dist.config import SegmenterRunConfig
from brasyn_dist.train import command_line


def main(arguments: Sequence[str] | None = None) -> int:
    def train(config: SegmenterRunConfig) -> int:
        with starting_up():
            from brasyn_dist.training.build import run
            from brasyn_dist.training.segmenter_task import SegmenterTask

        return run(SegmenterTask(config))

    def cost_of(config: SegmenterRunConfig) -> str:
        from brasyn_dist.training.segmenter_task import cost

        return cost(config)

    return command_line(arguments, "train_segmenter", __doc__, SegmenterRunConfig, train, cost_of)


if __name__ == "__main__":
    run_and_leave(main)
