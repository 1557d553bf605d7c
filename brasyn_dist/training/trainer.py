"""The training loop: loop, step and periodic work are three things.

for each global batch k of the stream          position = optimiser step; batch k = step // updates_per_batch
    for each update of it                      Step: the only one who knows what is trained (training/gan_step.py)
        average, monitor                       nothing waits for the device
        log / validate / save / stop           when due; ranks agree once a step
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from brasyn_dist.common.panels import save_png
from brasyn_dist.common.typed_yaml import to_dict
from brasyn_dist.config import RunConfig
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import BrasynError
from brasyn_dist.training import run_dir as run_folder
from brasyn_dist.training import stop_request as stop
from brasyn_dist.training.background_save import BackgroundSaver
from brasyn_dist.training.checkpoint import remove_old
from brasyn_dist.training.ema import update_average
from brasyn_dist.training.gan_step import Step
from brasyn_dist.training.loggers import JsonLines, Telemetry
from brasyn_dist.training.metrics import Monitor
from brasyn_dist.training.rank_timing import DATA_WAIT, Observer
from brasyn_dist.training.schedule import ema_decay, rate_factor, scaled_rate
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import TrainingData
from brasyn_dist.training.validation import SliceValidator


@dataclass
class Clock:
    """Where the time of this execution goes, in seconds since the last report."""

    wait: float = 0.0
    agree: float = 0.0
    validate: float = 0.0
    save: float = 0.0
    steps: int = 0
    since: float = 0.0

    def restart(self) -> None:
        self.wait = self.agree = self.validate = self.save = 0.0
        self.steps = 0
        self.since = time.monotonic()


class Trainer:
    """One run from its current step to its last, or to a request to stop."""

    def __init__(
        self,
        config: RunConfig,
        distributed: Distributed,
        data: TrainingData,
        state: TrainState,
        step: Step,
        validator: SliceValidator | None,
        export: Callable[[nn.Module, int], None],
        telemetry: Telemetry,
        identity: dict[str, object],
        total_steps: int,
    ) -> None:
        self.config = config
        self.distributed = distributed
        self.data = data
        self.state = state
        self.update = step
        self.validator = validator
        self.export = export
        self.telemetry = telemetry
        self.identity = identity
        self.total_steps = total_steps
        self.run_dir = config.run_dir
        self.monitor = Monitor(
            distributed,
            config.training.global_batch_size * step.variants,
            keys=lambda step: self.data.rank_keys((step - 1) // config.training.updates_per_batch),
            overflow_is_normal=config.runtime.precision == "fp16",
        )
        self.trace = (
            JsonLines(
                self.run_dir / f"trace-{distributed.world}-{distributed.rank}.jsonl", state.step, at_once=True
            )
            if config.telemetry.trace_batches
            else None
        )
        self.observer = Observer(config, distributed)
        self.stop = stop.StopRequest(self.run_dir, distributed.is_main)
        self.clock = Clock(since=time.monotonic())
        self.saver = (
            BackgroundSaver(self.run_dir / run_folder.CHECKPOINTS, self._after_save)
            if distributed.is_main
            else None
        )
        self.last_save = time.monotonic()
        self.saved_step = state.step

    def fit(self) -> int:
        """Train. Returns the exit status: stop.FINISHED or stop.STOPPED."""
        with self.observer:
            for batch, update in self._updates():
                self._train(batch, update)
                if (reason := self._periodic()) is not None:
                    return self._finish("stopped", reason, stop.STOPPED)
            return self._finish("finished", "", stop.FINISHED)

    def _updates(self) -> Iterator[tuple[SliceBatch, int]]:
        """(batch, number of the update within it) from the current step on, also from the middle of a batch."""
        per_batch = self.config.training.updates_per_batch
        first, skip = divmod(self.state.step, per_batch)
        with self.data.stream(first, -(-self.total_steps // per_batch)) as stream:
            waited = time.monotonic()
            for batch in stream:
                self.clock.wait += time.monotonic() - waited
                for update in range(skip, per_batch):
                    if self.state.step == self.total_steps:
                        return
                    yield batch, update
                skip = 0
                waited = time.monotonic()

    def _train(self, batch: SliceBatch, update: int) -> None:
        config, state = self.config, self.state
        self.observer.beat(f"update to step {state.step + 1}")
        if self.trace is not None:
            self.trace.write(trace_line(state.step + 1, batch, self.update.trace(batch, update)))
        rate = scaled_rate(config.optimizer, config.training.global_batch_size) * rate_factor(
            state.step, self.total_steps, config.optimizer.warmup_steps
        )
        sums = self.update.update(batch, update, rate)
        state.step += 1
        if state.average is not None:
            decay = ema_decay(state.step, config.training.ema_decay)
            with state.main.gathered():
                update_average(state.average, state.main.module, decay)
        self.clock.steps += 1
        self.monitor.add(
            {
                "step": state.step,
                "epoch": round(self.data.order.epoch(batch.index + 1), 6),
                "rate": rate,
            },
            sums,
        )

    # ---- periodic work

    def _periodic(self) -> str | None:
        """Log, validate and save what is due after a step. Returns the reason if the run was asked to stop."""
        step, last = self.state.step, self.state.step == self.total_steps
        settings = self.config.checkpoint
        minutes = (time.monotonic() - self.last_save) / 60
        reason = self.stop.reason
        begun = time.monotonic()
        # One agreement a step: a signal may have reached one rank only, clocks differ, and only rank 0 saves.
        stopping, late, unsaved = self.distributed.any(
            reason is not None,
            self.distributed.is_main and 0 < settings.every_minutes <= minutes,
            self.saver is not None and self.saver.failed,
        )
        self.clock.agree += time.monotonic() - begun
        if unsaved:
            if self.saver is not None:
                self.saver.check()
            raise BrasynError(
                f"rank {self.distributed.rank}: stops, since rank 0 could not save a checkpoint"
            )
        if last or step % self.config.telemetry.log_every == 0:
            self._log()
        every = self.config.validation.every_steps
        improved = (
            self.validator is not None and every > 0 and (last or step % every == 0) and self._validate()
        )
        if last or stopping or late or improved or step % settings.every_steps == 0:
            self._save()
        return (reason or "another rank was signalled") if stopping and not last else None

    def _log(self) -> None:
        lines = self.monitor.flush()
        self.telemetry.train(lines)
        if not lines or not self.clock.steps:
            return
        timings = self.observer.interval(
            self.state.step,
            self.clock.steps,
            {DATA_WAIT: self.clock.wait, "agree": self.clock.agree, "checkpoint": self.clock.save},
        )
        elapsed = time.monotonic() - self.clock.since
        busy = max(elapsed - self.clock.validate - self.clock.save, 1e-9)
        slices = self.clock.steps * self.config.training.global_batch_size
        self.telemetry.performance(
            {
                "step": self.state.step,
                "seconds_per_step": round(busy / self.clock.steps, 4),
                "slices_per_second": round(slices / busy, 3),
                "data_wait_fraction": round(self.clock.wait / busy, 5),
                "validate_seconds": round(self.clock.validate, 3),
                "save_seconds": round(self.clock.save, 3),
                "write_seconds": round(self.saver.write_seconds if self.saver else 0.0, 3),
                **timings,
            }
        )
        caption, term = self.update.headline
        self.telemetry.progress(
            self.state.step,
            {
                caption: f"{lines[-1][term]:.4f}" if lines[-1].get(term) is not None else "-",
                "slices/s": f"{slices / busy:.2f}",
                "data wait": f"{self.clock.wait / busy:.1%}",
            },
        )
        self.clock.restart()

    def _validate(self) -> bool:
        """Score the averaged network. Returns whether it is the best so far (then it is exported)."""
        assert self.validator is not None
        self._log()
        begun = time.monotonic()
        self.observer.beat(f"validation at step {self.state.step}")
        scores, panels = self.validator(self.state.network)
        self.telemetry.validation({"step": self.state.step, **scores})
        for name, picture in panels.items():
            save_png(self.run_dir / run_folder.PANELS / f"step-{self.state.step:08d}-{name}.png", picture)
            self.telemetry.image(self.state.step, f"panels/{name}", picture)
        self.telemetry.say(f"validation at step {self.state.step}: " + describe(scores))
        value = self.validator.badness(scores)
        improved = value < self.state.best.get("value", float("inf"))
        if improved:
            self.state.best = {"step": self.state.step, "value": value}
            self._export()
        self.clock.validate += time.monotonic() - begun
        return improved

    def _export(self) -> None:
        """Write the network that users load: the average, with the statistics it was trained with."""
        if self.distributed.is_main:
            self.export(self.state.network, self.state.step)

    def _save(self) -> None:
        """Checkpoint the current step, once; what has been logged so far is on disk before."""
        self._log()
        if self.saved_step == self.state.step:
            return
        begun = time.monotonic()
        self.observer.beat(f"checkpoint of step {self.state.step}")
        self.observer.write_summary()
        tensors = self.state.tensors()
        if self.saver is not None:
            self.telemetry.flush()
            self.saver.save(self.state.step, tensors, self._saved_facts())
        self.saved_step, self.last_save = self.state.step, time.monotonic()
        self.clock.save += self.last_save - begun

    def _after_save(self) -> None:
        """Runs when a checkpoint is complete: older ones may go."""
        best = self.state.best.get("step")
        root = self.run_dir / run_folder.CHECKPOINTS
        remove_old(root, self.config.checkpoint.keep, None if best is None else int(best))

    def _saved_facts(self) -> dict[str, object]:
        return {
            "step": self.state.step,
            "identity": self.identity,
            "options": to_dict(self.config),
            "best": self.state.best,
            "loss_scale": self.distributed.scaler_state,
            "world": self.distributed.world,
        }

    def _finish(self, status: str, reason: str, code: int) -> int:
        self._save()
        if self.saver is not None:
            self.saver.wait()
        if status == "finished" and not self.state.best:
            self._export()
        if self.distributed.is_main:
            run_folder.write_status(self.run_dir, status, self.state.step, self.total_steps, reason)
        self.stop.fulfilled()
        self.stop.close()
        text = f"{status} at step {self.state.step}/{self.total_steps}" + (f" ({reason})" if reason else "")
        self.telemetry.say(text + ("" if status == "finished" else "; the same command continues"))
        self.telemetry.close(status)
        if status == "finished":
            self._report()
        if self.trace is not None:
            self.trace.close()
        # A launcher ends the others, after half a minute by force, once one rank has left with STOPPED: none may
        # leave while rank 0 is still writing.
        self.distributed.barrier()
        return code

    def _report(self) -> None:
        """Draw report.html. The run is finished and everything saved: whatever fails here does not undo that."""
        if not (self.distributed.is_main and self.config.telemetry.report):
            return
        try:
            from brasyn_dist.report.training_report import write_run_report

            print(f"report: {write_run_report(self.run_dir)}", flush=True)
        except Exception as error:  # a full disk, a font that is missing
            print(f"warning: report.html could not be drawn ({type(error).__name__}: {error})", flush=True)


def trace_line(step: int, batch: SliceBatch, asked: list[list[object]]) -> dict[str, object]:
    """What this rank trained on in one update: for each sample its key and what was asked of it."""
    samples = [[key, *what] for key, what in zip(batch.keys, asked, strict=True)]
    return {"step": step, "first_row": batch.rows.start, "samples": samples}


def describe(scores: Mapping[str, float]) -> str:
    return "  ".join(f"{k} {v:.4f}" for k, v in scores.items() if "/" not in k)
