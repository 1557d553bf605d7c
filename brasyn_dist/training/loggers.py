"""What a run tells: console, metrics.jsonl, performance.jsonl, W&B, TensorBoard behind one interface.

    metrics.jsonl      one line per optimiser step and per validation; a pure function of the run, so that a run that
                       was killed and resumed ends with the same bytes as one that was not
    performance.jsonl  timings and memory: true of this execution alone
    trackers           the same numbers with the optimiser step as their axis; a step is never sent twice

Everything here runs on rank 0; other ranks hold a `Telemetry` without sinks.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from brasyn_dist.common.files import atomic_write_text, fsync, write_json
from brasyn_dist.config import TelemetryConfig

METRICS = "metrics.jsonl"
PERFORMANCE = "performance.jsonl"


class Sink(Protocol):
    """Somewhere that numbers and pictures go, by optimiser step."""

    def expect(self, step: int) -> None:
        """Numbers of steps up to this one are about to come."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None: ...
    def close(self, status: str) -> None: ...


class JsonLines:
    """Appends one JSON object a line; on opening, drops lines after `resumed_step` and a torn last line.

    `at_once`: a line that was written survives the process, without a flush.
    """

    def __init__(self, path: Path, resumed_step: int | None = None, at_once: bool = False) -> None:
        self.path = path
        if resumed_step is not None and path.exists():
            kept = [json.dumps(v) for v in read_lines(path) if v["step"] <= resumed_step]
            atomic_write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1 if at_once else -1)

    def write(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; a torn last line (the writer was killed) is left out."""
    values = []
    for line in path.read_text().splitlines():
        try:
            values.append(json.loads(line))
        except ValueError:
            break
    return values


class TensorBoardSink:
    """TensorBoard event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path, resumed_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed process wrote after the checkpoint.
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def expect(self, step: int) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        self._writer.add_image(name, rgb_HW3, step, dataformats="HWC")

    def close(self, status: str) -> None:
        self._writer.close()


class WandbSink:
    """Weights & Biases: the same run after every resume; `<run>/wandb.json` holds its id and the last step sent."""

    def __init__(self, config: TelemetryConfig, run_dir: Path, options: dict[str, Any]) -> None:
        import wandb

        self._note = run_dir / "wandb.json"
        known = json.loads(self._note.read_text()) if self._note.exists() else None
        self._id = known["id"] if known else uuid.uuid4().hex[:8]
        # Steps that an earlier process of this run has sent; a resumed run computes them again, with equal values.
        self._sent = known["last_step"] if known else -1
        self._wandb = wandb
        self._run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=run_dir.name,
            id=self._id,
            resume="allow",
            mode="online" if config.wandb == "online" else "offline",
            dir=str(run_dir),
            config=options,
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("optimizer_step")
        self._run.define_metric("*", step_metric="optimizer_step")
        self.expect(self._sent)

    def expect(self, step: int) -> None:
        """Note the step before it is sent: killed in between, a step is missing rather than doubled."""
        write_json(self._note, {"id": self._id, "last_step": max(self._sent, step)})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._sent:
            self._run.log({"optimizer_step": step, **values})

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        if step > self._sent:
            self._run.log({"optimizer_step": step, name: self._wandb.Image(rgb_HW3)})

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


class Telemetry:
    """All sinks of one process. Values are buffered by the caller; `flush` is what reaches the disk."""

    def __init__(
        self,
        config: TelemetryConfig,
        run_dir: Path,
        is_main: bool,
        total_steps: int,
        resumed_step: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.is_main = is_main
        self.total_steps = total_steps
        self._sinks: list[Sink] = []
        self._bar: Any = None
        self._said = 0.0
        if not is_main:
            return
        self._metrics = JsonLines(run_dir / METRICS, resumed_step)
        self._performance = JsonLines(run_dir / PERFORMANCE)
        if config.tensorboard:
            self._sinks.append(TensorBoardSink(run_dir / "tensorboard", resumed_step))
        if config.wandb != "off":
            self._sinks.append(WandbSink(config, run_dir, options or {}))
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=resumed_step or 0, unit="step", dynamic_ncols=True)

    def train(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Metrics of consecutive optimiser steps; each has `step`."""
        if not self.is_main or not lines:
            return
        for sink in self._sinks:
            sink.expect(lines[-1]["step"])
        for line in lines:
            self._metrics.write({"step": line["step"], "kind": "train", **line})
            self._send("train", line)

    def validation(self, line: Mapping[str, Any]) -> None:
        if self.is_main:
            self._metrics.write({"step": line["step"], "kind": "validation", **line})
            self._send("validation", line)

    def performance(self, line: Mapping[str, Any]) -> None:
        if self.is_main:
            self._performance.write({"time": round(time.time(), 3), **line})
            self._send("performance", line)

    def resumed(self, step: int, seconds: float) -> None:
        """How long it took to verify and read the checkpoint of `step`: a line of performance.jsonl, and of the console."""
        if self.is_main:
            self._performance.write(
                {"time": round(time.time(), 3), "step": step, "resume_seconds": round(seconds, 3)}
            )
            self.say(f"resumed from step {step}: checkpoint verified and read in {seconds:.1f} s")

    def _send(self, group: str, line: Mapping[str, Any]) -> None:
        values = {f"{group}/{k}": v for k, v in line.items() if k != "step" and isinstance(v, int | float)}
        for sink in self._sinks:
            sink.scalars(line["step"], values)

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        for sink in self._sinks:
            sink.image(step, name, rgb_HW3)

    def progress(self, step: int, values: Mapping[str, str]) -> None:
        """The bar on a terminal; elsewhere a plain line, at most every ten seconds and at the end."""
        if not self.is_main:
            return
        text = "  ".join(f"{k} {v}" for k, v in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.monotonic() - self._said > 10 or step == self.total_steps:
            self._said = time.monotonic()
            print(f"step {step}/{self.total_steps}  {text}", flush=True)

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if not self.is_main:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def flush(self) -> None:
        """Everything so far is on disk: called before a checkpoint claims to have seen it."""
        if self.is_main:
            self._metrics.flush()
            self._performance.flush()
            fsync(self._metrics.path.parent)

    def close(self, status: str) -> None:
        if not self.is_main:
            return
        self.flush()
        self._metrics.close()
        self._performance.close()
        for sink in self._sinks:
            sink.close(status)
        if self._bar is not None:
            self._bar.close()
