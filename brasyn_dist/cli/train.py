"""Train a network on a shard set.

    brasyn train --config r3 [section.key=value ...]

    accelerate launch --config_file launch/one_node.yaml -m brasyn_dist.train --config configs/thesis/r3.yaml

The option `task` of the configuration says what is trained. To continue an interrupted run, run the same
command again. Exit status: 0 finished, 75 stopped on request (the same command continues), 1 failed, 2 wrong
usage.
"""

import json
import logging
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brasyn_dist.cli.command import Command, Overrides
from brasyn_dist.common.launch_environment import check_environment
from brasyn_dist.common.logs import redact
from brasyn_dist.common.processes import starting_up
from brasyn_dist.common.resources import find_resource

if TYPE_CHECKING:
    from brasyn_dist.config import RunConfig
    from brasyn_dist.training.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `brasyn train`."""

    overrides: Overrides = None
    """Options of the run, as listed below."""
    config: str | None = None
    """YAML file, or name of a packaged one (`brasyn configs`)."""
    dry_run: bool = False
    """Print what would run and what it costs; train nothing."""


def train(options: TrainOptions) -> int:
    """Train, continue or estimate a run; the exit status."""
    from brasyn_dist.config import RunConfig, load_config

    path = None if options.config is None else find_resource("configs", options.config)
    config = load_config(path, options.overrides or (), RunConfig)
    check_environment(config.runtime.precision)  # before Accelerate and torch read it
    task = build_task(config)
    if options.dry_run:
        from brasyn_dist.training.start_run import check

        check(task)
        print(redact(cost(config)))
        return 0
    from brasyn_dist.training.start_run import run

    status = run(task)
    if status == 0 and config.telemetry.report and int(os.environ.get("RANK", "0")) == 0:
        write_report(config.run_dir)
    return status


def build_task(config: "RunConfig") -> "Task":
    """What the configuration's `task` names."""
    with starting_up():
        from brasyn_dist.training.gan_task import GanTask
        from brasyn_dist.training.segmenter_task import SegmenterTask
        from brasyn_dist.training.volume_task import VolumeTask

    classes: dict[str, type[Task]] = {
        "generator": GanTask,
        "segmenter": SegmenterTask,
        "volume": VolumeTask,
        "refiner": VolumeTask,
    }
    return classes[config.task](config)


def cost(config: "RunConfig") -> str:
    """What a run would execute and need, as text."""
    from brasyn_dist.config import Config, PatchRunConfig, SegmenterRunConfig

    if isinstance(config, SegmenterRunConfig):
        from brasyn_dist.training import segmenter_task

        return segmenter_task.cost(config)
    assert isinstance(config, Config | PatchRunConfig)
    from brasyn_dist.training import cost_model

    return cost_model.cost_report(config)


def write_report(run_dir: Path) -> None:
    """Write report.html of a finished run. The run is complete without it, so a failure is only logged."""
    try:
        from brasyn_dist.report.training_report import write_run_report

        log.info("report: %s", write_run_report(run_dir))
    except Exception as error:  # such as a full disk or a missing font
        log.warning("report.html could not be written (%s: %s)", type(error).__name__, error)


def options_help() -> str:
    """All options of a run: type, default and description, by task."""
    from brasyn_dist.config import TASKS, all_options

    lines = []
    shown: set[str] = set()
    for task, cls in TASKS.items():
        lines += ["", f"Options of task {task}" + (", in addition:" if shown else ":")]
        for key, option in all_options(cls):
            if key in shown:
                continue
            shown.add(key)
            text = option.default if isinstance(option.default, str) else json.dumps(option.default)
            lines.append(f"  {key}={text}  ({option.allowed})")
            lines += textwrap.wrap(option.description, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


main = Command("train", TrainOptions, train, more_help=options_help)
