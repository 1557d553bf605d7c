"""Train a generator: `accelerate launch ... -m brasyn_dist.train --config configs/X.yaml [section.key=value ...]`.

To continue an interrupted run, run the same command again.
Exit status: 0 finished, 75 stopped on request (the same command continues), 1 failed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.processes import run_and_leave, starting_up
from brasyn_dist.config import Config, T, load_config
from brasyn_dist.errors import BrasynError


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()

    # torch and the rest of the imports take seconds, which `--help` and wrong options need not wait for.
    def train(config: Config) -> int:
        with starting_up():
            from brasyn_dist.training.build import run
            from brasyn_dist.training.gan_task import GanTask

        return run(GanTask(config))

    def cost(config: Config) -> str:
        from brasyn_dist.training.cost_model import report

        return report(config)

    return command_line(arguments, "train", __doc__, Config, train, cost)


def command_line(
    arguments: Sequence[str] | None,
    module: str,
    description: str,
    kind: type[T],
    train: Callable[[T], int],
    cost: Callable[[T], str],
) -> int:
    """Read the options of a training command into a configuration of `kind`; train, or say what it would cost."""
    parser = argparse.ArgumentParser(
        prog=f"python -m brasyn_dist.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file (configs/); defaults otherwise")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and what it costs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides, kind)
        if options.dry_run:
            print(cost(config))
            return 0
        return train(config)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    run_and_leave(main)
