"""Train a generator: `accelerate launch ... -m brasyn_dist.train --config configs/X.yaml [section.key=value ...]`.

To continue an interrupted run, run the same command again.
Exit status: 0 finished, 75 stopped on request (the same command continues), 1 failed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.config import load_config
from brasyn_dist.errors import BrasynError
from brasyn_dist.processes import run_and_leave, starting_up


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file (configs/); defaults otherwise")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and what it costs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if options.dry_run:
            from brasyn_dist.training.cost import report

            print(report(config))
            return 0
        with starting_up():
            from brasyn_dist.training.setup import run

        return run(config)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    run_and_leave(main)
