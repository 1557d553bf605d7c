"""Write the report of training runs, finished or not: `python -m brasyn_dist.report RUN [RUN ...]`. Writes RUN/report.html."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.errors import BrasynError


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()
    parser = argparse.ArgumentParser(prog="python -m brasyn_dist.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    options = parser.parse_args(arguments)
    from brasyn_dist.report.training_report import write_run_report

    status = 0
    for run in options.runs:
        try:
            print(write_run_report(run))
        except BrasynError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
