"""Logs of a run: console, metrics.jsonl, performance.jsonl, W&B and TensorBoard behind one interface.

    metrics.jsonl      one line per optimiser step and per validation; a pure function of the run: a run that
                       was killed and resumed ends with the same bytes as an undisturbed one
    performance.jsonl  timings and memory of the executions
    trackers           the same numbers over the optimiser step; a step is never sent twice

Rank 0 writes. The other ranks have a `RunLogger` without outputs. A tracker that fails is switched off with a
warning, and training continues.
"""

import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from brasyn_dist.common.files import atomic_write_text, fsync, naming, write_json
from brasyn_dist.common.optional_packages import require
from brasyn_dist.config import TelemetryConfig
from brasyn_dist.errors import ConfigError

log = logging.getLogger(__name__)
METRICS = "metrics.jsonl"
PERFORMANCE = "performance.jsonl"
START_SECONDS, END_SECONDS = 60.0, 30.0
"""Limits of a tracker that has no network."""
CONSOLE_SECONDS = 10.0
"""Smallest time between two progress lines."""


class JsonLines:
    """Appends one JSON object per line.

    Args:
        path: The file.
        resumed_step: Remove lines of later steps and a truncated last line when the file is opened.
        at_once: Write each line immediately, so that it survives a kill of the process without a flush.
    """

    def __init__(self, path: Path, resumed_step: int | None = None, at_once: bool = False) -> None:
        self.path = path
        if resumed_step is not None and path.exists():
            kept = [json.dumps(v) + "\n" for v in read_lines(path) if v["step"] <= resumed_step]
            if "".join(kept) != path.read_text(errors="replace"):
                atomic_write_text(path, "".join(kept))
        self._file = path.open("a", buffering=1 if at_once else -1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        """Write all lines to the disk."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file up to the first line that is no JSON (the writer was killed)."""
    values = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict) or "step" not in value:
            break
        values.append(value)
    return values


class Tracker(Protocol):
    """A destination of numbers and pictures by optimiser step."""

    def scalars(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """(step, values) in the order of the steps."""

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        """Send a picture."""

    def close(self, status: str) -> None:
        """End the run in the tracker."""


class TensorBoardTracker:
    """TensorBoard event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides events that a killed process wrote after the checkpoint.
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def scalars(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Write numbers by step."""
        for step, values in lines:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        """Write a picture."""
        self._writer.add_image(name, rgb_HW3, step, dataformats="HWC")

    def close(self, status: str) -> None:
        """Close the event file."""
        self._writer.close()


class WandbTracker:
    """Weights & Biases.

    All executions of a run log to one W&B run; `<run>/wandb.json` holds its id and the last step sent.
    """

    def __init__(self, config: TelemetryConfig, run_dir: Path, options: dict[str, Any]) -> None:
        import wandb

        self._wandb, self._note = wandb, run_dir / "wandb.json"
        known = json.loads(self._note.read_text()) if self._note.exists() else None
        self._id = known["id"] if known else uuid.uuid4().hex[:8]
        # A resumed run computes steps again that an earlier process has sent, with equal values.
        self._sent = known["last_step"] if known else -1
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or config.wandb_project,
            entity=os.environ.get("WANDB_ENTITY") or config.wandb_entity,
            name=run_dir.name,
            id=self._id,
            resume="allow",
            mode=wandb_mode(config),  # type: ignore[arg-type]
            dir=str(run_dir),
            config=options,
            settings=wandb.Settings(console="off", init_timeout=START_SECONDS),
        )
        self._run.define_metric("optimizer_step")
        self._run.define_metric("*", step_metric="optimizer_step")
        self._save_note(self._sent)

    def _save_note(self, step: int) -> None:
        write_json(self._note, {"id": self._id, "last_step": max(self._sent, step)})

    def scalars(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Send the numbers of steps that were not sent before."""
        # Saved before the steps are sent: after a kill in between, steps are missing instead of sent twice.
        self._save_note(lines[-1][0])
        for step, values in lines:
            if step > self._sent:
                self._run.log({"optimizer_step": step, **values})

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        """Send a picture, unless its step was sent before."""
        if step > self._sent:
            self._run.log({"optimizer_step": step, name: self._wandb.Image(rgb_HW3)})

    def close(self, status: str) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


def wandb_mode(config: TelemetryConfig) -> str:
    """`off`, or the mode for wandb.init.

    The variable WANDB_MODE has priority over telemetry.wandb unless that is `off`.
    """
    return "off" if config.wandb == "off" else os.environ.get("WANDB_MODE") or config.wandb


def check_trackers(config: TelemetryConfig) -> None:
    """Check the requirements of the trackers, before any process waits for another.

    Raises:
        ConfigError: A package or the key of W&B is missing.
    """
    mode = wandb_mode(config)
    for wanted, option, package in (
        (config.tensorboard, "telemetry.tensorboard=true", "tensorboard"),
        (mode != "off", f"telemetry.wandb={config.wandb}", "wandb"),
    ):
        if wanted:
            require(package, package, option)
    if mode == "online" and not has_wandb_key():
        raise ConfigError(
            "telemetry.wandb=online: no API key of Weights & Biases was found; set WANDB_API_KEY, run "
            "`wandb login`, "
            "or use telemetry.wandb=offline"
        )


def has_wandb_key() -> bool:
    """Whether the environment or the netrc file has credentials for W&B."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or "wandb"
    try:
        text = Path(os.environ.get("NETRC", "~/.netrc")).expanduser().read_text()
    except (OSError, RuntimeError):
        return False
    return host in text or "wandb" in text


class RunLogger:
    """All outputs of one process.

    Args:
        config: Which trackers are on.
        run_dir: Folder of the files.
        is_main: False: no outputs.
        total_steps: Steps of the whole run, for the progress display.
        resumed_step: Step from which the run continues: later metrics are removed. None: keep all.
        options: Configuration of the run, for trackers.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        run_dir: Path,
        is_main: bool,
        total_steps: int,
        resumed_step: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.is_main, self.total_steps = is_main, total_steps
        self._trackers: dict[str, Tracker] = {}
        self._bar: Any = None
        self._printed = 0.0
        if not is_main:
            return
        self._metrics = JsonLines(run_dir / METRICS, resumed_step)
        self._performance = JsonLines(run_dir / PERFORMANCE)
        if config.tensorboard:
            self._start("TensorBoard", lambda: TensorBoardTracker(run_dir / "tensorboard", resumed_step))
        if wandb_mode(config) != "off":
            self._start("W&B", lambda: WandbTracker(config, run_dir, options or {}))
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=resumed_step or 0, unit="step", dynamic_ncols=True)

    def _start(self, name: str, make: Callable[[], Tracker]) -> None:
        try:
            self._trackers[name] = make()
        except Exception as error:  # no network, a wrong key, ...
            warn_tracker(name, error)

    def _track(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._trackers[name]
                warn_tracker(name, error)

    def _send(self, group: str, lines: Sequence[Mapping[str, Any]]) -> None:
        numbers = [
            (
                line["step"],
                {f"{group}/{k}": v for k, v in line.items() if k != "step" and isinstance(v, int | float)},
            )
            for line in lines
        ]
        self._track(lambda tracker: tracker.scalars(numbers))

    def train(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Metrics of consecutive optimiser steps; each has `step`."""
        if self.is_main and lines:
            for line in lines:
                self._metrics.write({"step": line["step"], "kind": "train", **line})
            self._send("train", lines)

    def validation(self, line: Mapping[str, Any]) -> None:
        """Write the scores of a validation."""
        if self.is_main:
            self._metrics.write({"step": line["step"], "kind": "validation", **line})
            self._send("validation", [line])

    def performance(self, line: Mapping[str, Any]) -> None:
        """Write times and rates of a period."""
        if self.is_main:
            self._performance.write({"time": round(time.time(), 3), **line})
            self._send("performance", [line])

    def resumed(self, step: int, seconds: float) -> None:
        """Log how long the verification and loading of the checkpoint took."""
        if self.is_main:
            line = {"time": round(time.time(), 3), "step": step, "resume_seconds": round(seconds, 3)}
            self._performance.write(line)
            self.info(f"resumed from step {step}: checkpoint verified and read in {seconds:.1f} s")

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        """Send a picture to the trackers."""
        self._track(lambda tracker: tracker.image(step, name, rgb_HW3))

    def progress(self, step: int, values: Mapping[str, str]) -> None:
        """A progress bar on a terminal; otherwise a line, at most every `CONSOLE_SECONDS` and at the end."""
        if not self.is_main:
            return
        text = "  ".join(f"{k} {v}" for k, v in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._printed > CONSOLE_SECONDS or step == self.total_steps:
            self._printed = time.monotonic()
            log.info("step %s/%s  %s", step, self.total_steps, text)

    def info(self, text: str) -> None:
        """A message on the console, above the progress bar."""
        if self.is_main:
            if self._bar is not None:
                self._bar.clear()
            log.info("%s", text)
            if self._bar is not None:
                self._bar.refresh()

    def flush(self) -> None:
        """Write everything so far to the disk. Called before a checkpoint is saved."""
        if self.is_main:
            self._metrics.flush()
            self._performance.flush()
            fsync(self._metrics.path.parent)

    def close(self, status: str) -> None:
        """Flush and close all outputs."""
        if self.is_main:
            self.flush()
            self._metrics.close()
            self._performance.close()
            self._track(lambda tracker: within(END_SECONDS, lambda: tracker.close(status)))
            if self._bar is not None:
                self._bar.close()


def within(seconds: float, action: Callable[[], None]) -> None:
    """Run `action` in a thread. Raises its exception, or TimeoutError; the thread is then not ended."""
    done: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
            done.append(None)
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"not finished within {seconds:g} s")
    if done[0] is not None:
        raise done[0]


def warn_tracker(name: str, error: Exception) -> None:
    """Warn that a tracker is switched off."""
    log.warning(
        "%s failed and is switched off for this execution; training continues, and %s is complete (%s: %s)",
        name,
        METRICS,
        type(error).__name__,
        str(error).strip().partition("\n")[0],
    )
