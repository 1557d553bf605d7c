"""Write the report of training runs, finished or not, to RUN/report.html.

brasyn report RUN [RUN ...]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument

from brasyn_dist.cli.command import Command
from brasyn_dist.errors import BrasynError


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `brasyn report`."""

    runs: Annotated[list[Path], Argument(metavar="RUN")]
    """Run folders."""


def run(options: ReportOptions) -> int:
    """Write every report that is possible; the exit status."""
    from brasyn_dist.report.training_report import write_run_report

    status = 0
    for run_dir in options.runs:
        try:
            print(write_run_report(run_dir))
        except BrasynError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


main = Command("report", ReportOptions, run)
