"""Train a network: `accelerate launch ... -m brasyn_dist.train --config configs/X.yaml [section.key=value ...]`.

The option `task` says what is trained: a generator or a segmenter.
To continue an interrupted run, run the same command again.
Exit status: 0 finished, 75 stopped on request (the same command continues), 1 failed.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.processes import run_and_leave, starting_up
from brasyn_dist.config import Config, RunConfig, SegmenterRunConfig, load_config
from brasyn_dist.errors import BrasynError

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file (configs/); defaults otherwise")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and what it costs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(options.config, options.overrides, RunConfig)
        if options.dry_run:
            print(cost(config))
            return 0
        return train(config)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def cost(config: RunConfig) -> str:
    """What a run would execute and need."""
    # torch and the rest of the imports take seconds, which `--help` and wrong options need not wait for.
    if isinstance(config, SegmenterRunConfig):
        from brasyn_dist.training import segmenter_task

        return segmenter_task.cost(config)
    assert isinstance(config, Config)
    from brasyn_dist.training import cost_model

    return cost_model.report(config)


def train(config: RunConfig) -> int:
    """Train what the configuration's task names; the exit status."""
    with starting_up():
        from brasyn_dist.training.build import run
        from brasyn_dist.training.gan_task import GanTask
        from brasyn_dist.training.segmenter_task import SegmenterTask

    if isinstance(config, SegmenterRunConfig):
        status = run(SegmenterTask(config))
    else:
        assert isinstance(config, Config)
        status = run(GanTask(config))
    if status == 0 and config.telemetry.report and os.environ.get("RANK", "0") == "0":
        write_report(config.run_dir)
    return status


def write_report(run_dir: Path) -> None:
    """Write report.html. The run is finished, so errors are only reported."""
    try:
        from brasyn_dist.report.training_report import write_run_report

        log.info("report: %s", write_run_report(run_dir))
    except Exception as error:  # a full disk, a missing font
        log.warning("report.html could not be drawn (%s: %s)", type(error).__name__, error)


if __name__ == "__main__":
    run_and_leave(main)
