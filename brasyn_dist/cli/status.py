"""Show the progress of training runs, one line for each.

brasyn status [RUNS_DIR] [--watch]
"""

import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from brasyn_dist.cli.command import Command
from brasyn_dist.common.files import json_lines, read_json
from brasyn_dist.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

TAIL_BYTES = 64 * 1024
"""Read from the end of a log file; contains its last lines."""
STYLES = {"running": "green", "finished": "blue", "stopped": "yellow", "killed": "yellow", "failed": "red"}


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Options of `brasyn status`."""

    runs_dir: Annotated[Path, Argument(metavar="RUNS_DIR")] = Path("runs")
    """Folder of run folders, or one run folder."""
    watch: bool = False
    """Refresh until interrupted."""
    every: Annotated[float, Option(metavar="SECONDS", min=0.1)] = 5.0
    """Seconds between two refreshes."""


@dataclass(frozen=True)
class RunStatus:
    """What the files of a run folder say."""

    name: str
    task: str
    status: str
    """That of status.json, or `killed` if it is `running` and no process has the run."""
    step: int
    total_steps: int
    loss: float | None
    slices_per_second: float | None
    seconds_left: float | None
    job: str
    reason: str
    updated: float | None = None
    """Time of the last log line or status, in seconds since the epoch."""


def run(options: StatusOptions) -> None:
    """Print the table, once or repeatedly."""
    from rich.console import Console
    from rich.live import Live

    if not options.runs_dir.is_dir():
        raise DataError(f"{options.runs_dir}: no such folder; give the folder of the runs")
    if not options.watch:
        # Lines in a file or pipe are not cut at the width of a terminal.
        console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=200)
        console.print(table(find_runs(options.runs_dir)))
        return
    try:
        with Live(table(find_runs(options.runs_dir)), auto_refresh=False) as live:
            while True:
                time.sleep(options.every)
                live.update(table(find_runs(options.runs_dir)), refresh=True)
    except KeyboardInterrupt:
        pass


def find_runs(folder: Path) -> list[RunStatus]:
    """Runs in `folder`, or the run `folder` itself."""
    folders = (
        [folder]
        if (folder / "config.yaml").exists()
        else sorted(p.parent for p in folder.glob("*/config.yaml"))
    )
    return [read_run(run_dir) for run_dir in folders]


def read_run(run_dir: Path) -> RunStatus:
    """Status of a run; missing and incomplete files are treated as empty."""
    import yaml

    from brasyn_dist.config import task_of
    from brasyn_dist.training.run_dir import in_use

    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text()) or {}
    except (OSError, yaml.YAMLError):
        config = {}
    status = read_json(run_dir / "status.json")
    step, total = int(status.get("step", 0)), int(status.get("total_steps", 0))
    loss = None
    for line in last_lines(run_dir / "metrics.jsonl"):
        if line.get("kind") == "train":
            step = max(step, int(line["step"]))
            loss = total_loss(line)
            break
    timing = next((t for t in last_lines(run_dir / "performance.jsonl") if "seconds_per_step" in t), {})
    seconds = timing.get("seconds_per_step")
    state = str(status.get("status", "unknown"))
    if state == "running" and not in_use(run_dir):
        state = "killed"
    running = state == "running"
    return RunStatus(
        name=run_dir.name,
        task=task_of(config),
        status=state,
        step=step,
        total_steps=total,
        loss=loss,
        slices_per_second=timing.get("slices_per_second"),
        seconds_left=seconds * (total - step) if running and seconds is not None else None,
        job=str(status.get("job") or ""),
        reason=str(status.get("reason") or ""),
        updated=max((t for t in (status.get("time"), timing.get("time")) if t is not None), default=None),
    )


def total_loss(line: dict[str, Any]) -> float | None:
    """Sum of the weighted loss terms of a line of metrics.jsonl; without the discriminator's."""
    other = ("step", "kind", "epoch", "rate")
    terms = [
        value
        for name, value in line.items()
        if name not in other and not name.startswith("discriminator") and not name.endswith("_norm")
    ]
    return sum(terms) if terms and all(isinstance(t, int | float) for t in terms) else None


def last_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines at the end of a file, the last one first; incomplete lines are left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return list(json_lines(file.read().decode(errors="replace")))[::-1]
    except OSError:
        return []


def table(runs: list[RunStatus]) -> "Table":
    """One line for each run."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False)
    texts = ("run", "task", "status", "job", "reason")
    for heading in (
        "run",
        "task",
        "status",
        "step",
        "loss",
        "samples/s",
        "time left",
        "updated",
        "job",
        "reason",
    ):
        made.add_column(heading, justify="left" if heading in texts else "right", no_wrap=True)
    for run in runs:
        made.add_row(
            Text(run.name),
            run.task,
            Text(run.status, style=STYLES.get(run.status, "")),
            f"{run.step}/{run.total_steps}",
            "" if run.loss is None else f"{run.loss:.4g}",
            "" if run.slices_per_second is None else f"{run.slices_per_second:.1f}",
            duration(run.seconds_left),
            duration(None if run.updated is None else time.time() - run.updated, " ago"),
            run.job,
            Text(" ".join(run.reason.split())),  # no markup: messages contain brackets
        )
    return made


def duration(seconds: float | None, more: str = "") -> str:
    """`0:01:30` and `more`; empty for None."""
    return "" if seconds is None else f"{timedelta(seconds=max(0, round(seconds)))}{more}"


main = Command("status", StatusOptions, run)
