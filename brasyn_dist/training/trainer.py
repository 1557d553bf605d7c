"""The training loop.

for each global batch k of the stream          batch k = step // updates_per_batch
    for each update of it                      Step: one optimiser update (gan_step.py, segmenter_task.py)
        log / validate / save / stop           when due; ranks agree once per step

Nothing in an update waits for the device.
"""

import time
from collections.abc import Iterator, Mapping

from brasyn_dist.common.panels import save_png
from brasyn_dist.common.processes import STOPPED
from brasyn_dist.config import RunConfig, to_dict
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.data.loading.transfer import TransferError
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.errors import BrasynError
from brasyn_dist.training.checkpoint import CheckpointSaver, remove_old
from brasyn_dist.training.loggers import JsonLines, RunLogger
from brasyn_dist.training.metrics import MetricBuffer
from brasyn_dist.training.rank_timing import (
    AGREEMENT,
    CHECKPOINT,
    DATA_WAIT,
    VALIDATION,
    HostTimer,
    RankMonitor,
)
from brasyn_dist.training.run_dir import CHECKPOINTS, EXPORT, PANELS, write_status
from brasyn_dist.training.schedule import ema_decay, rate_factor, scaled_rate
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.stop_request import FINISHED, StopRequest
from brasyn_dist.training.task import Step, Task
from brasyn_dist.training.training_data import TrainingData
from brasyn_dist.training.validation import SliceValidator


class Trainer:
    """Trains one run from its current step to the last one, or to a stop request.

    Args:
        task: What is trained, and the options of the run.
        group: The ranks.
        data: Training slices.
        state: Networks and optimisers at the current step.
        step: One optimiser update.
        validator: None: no validation.
        logger: Console, files, trackers.
        identity: What a resume compares (run_dir.py).
        total_steps: Optimiser steps of the whole run.
    """

    def __init__(
        self,
        task: Task,
        group: Distributed,
        data: TrainingData,
        state: TrainState,
        step: Step,
        validator: SliceValidator | None,
        logger: RunLogger,
        identity: dict[str, object],
        total_steps: int,
    ) -> None:
        config: RunConfig = task.config
        self.task, self.config, self.group, self.data, self.state = task, config, group, data, state
        self.step, self.validator, self.logger = step, validator, logger
        self.identity, self.total_steps, self.run_dir = identity, total_steps, config.run_dir
        self.metrics = MetricBuffer(
            group,
            config.training.global_batch_size * step.variants,
            keys=lambda step: data.rank_keys((step - 1) // config.training.updates_per_batch),
            overflow_is_normal=config.runtime.precision == "fp16",
        )
        self.trace: JsonLines | None = None
        if config.telemetry.trace_batches:
            path = self.run_dir / f"trace-{group.world}-{group.rank}.jsonl"
            self.trace = JsonLines(path, state.step, at_once=True)
        self.monitor, self.timer = RankMonitor(config, group), HostTimer()
        self.stop_request = StopRequest(self.run_dir, group.is_main)
        self.saver = CheckpointSaver(self.run_dir / CHECKPOINTS, self._after_save) if group.is_main else None
        self.last_save, self.saved_step = time.monotonic(), state.step

    def train(self) -> int:
        """Train. Returns the exit status: FINISHED or STOPPED."""
        try:
            return self._train()
        except TransferError:
            reason = self.stop_request.reason
            if reason is None:
                raise
            if self.group.world > 1:  # the others wait for this rank's part of the batch: no checkpoint
                raise SystemExit(STOPPED) from None
            return self._finish("stopped", reason, STOPPED)

    def _train(self) -> int:
        config, state = self.config, self.state
        with self.monitor:
            for batch, update in self._batches():
                self._train_step(batch, update)
                last = state.step == self.total_steps
                stop_reason, save_is_late = self._agree()
                if last or is_due(state.step, config.telemetry.log_every):
                    self._log()
                improved = False
                if self.validator and (last or is_due(state.step, config.validation.every_steps)):
                    improved = self._validate(self.validator)
                due = is_due(state.step, config.checkpoint.every_steps)
                if last or stop_reason or save_is_late or improved or due:
                    self._save()
                if stop_reason and not last:
                    return self._finish("stopped", stop_reason, STOPPED)
            return self._finish("finished", "", FINISHED)

    def _batches(self) -> Iterator[tuple[SliceBatch, int]]:
        """(batch, number of the update within it) from the current step on, also from within a batch."""
        per_batch = self.config.training.updates_per_batch
        first, skip = divmod(self.state.step, per_batch)
        with self.data.stream(first, -(-self.total_steps // per_batch)) as stream:
            while True:
                with self.timer.measure(DATA_WAIT):
                    batch = next(stream, None)
                if batch is None:
                    return
                for update in range(skip, per_batch):
                    if self.state.step == self.total_steps:
                        return
                    yield batch, update
                skip = 0

    def _train_step(self, batch: SliceBatch, update: int) -> None:
        config, state = self.config, self.state
        self.monitor.beat(f"update to step {state.step + 1}")
        if self.trace is not None:
            asked = self.step.trace(batch, update)
            samples = [[key, *what] for key, what in zip(batch.keys, asked, strict=True)]
            self.trace.write({"step": state.step + 1, "first_row": batch.rows.start, "samples": samples})
        rate = scaled_rate(config.optimizer, config.training.global_batch_size) * rate_factor(
            state.step, self.total_steps, config.optimizer
        )
        sums = self.step.update(batch, update, rate)
        state.step += 1
        state.update_average(ema_decay(state.step, config.training.ema_decay))
        self.timer.steps += 1
        epoch = round(self.data.order.epoch(batch.index + 1), 6)
        self.metrics.add({"step": state.step, "epoch": epoch, "rate": rate}, sums)

    def _agree(self) -> tuple[str | None, bool]:
        """(reason if any rank was asked to stop, whether a checkpoint is due by time), equal on all ranks.

        One agreement per step is necessary: a signal can reach one rank only, clocks differ, only rank 0
        saves.
        """
        every_minutes, reason = self.config.checkpoint.every_minutes, self.stop_request.reason
        minutes = (time.monotonic() - self.last_save) / 60
        with self.timer.measure(AGREEMENT):
            stopping, late, unsaved = self.group.any(
                reason is not None,
                self.group.is_main and 0 < every_minutes <= minutes,
                self.saver is not None and self.saver.failed,
            )
        if unsaved:
            if self.saver is not None:
                self.saver.check()
            raise BrasynError(f"rank {self.group.rank}: stops, since rank 0 could not save a checkpoint")
        return ((reason or "another rank was signalled") if stopping else None), late

    def _log(self) -> None:
        lines, timer = self.metrics.flush(), self.timer
        self.logger.train(lines)
        if not lines or not timer.steps:
            return
        timings = self.monitor.interval(self.state.step, timer)
        seconds, wait = timer.training_seconds, timer.seconds[DATA_WAIT]
        slices = timer.steps * self.config.training.global_batch_size
        self.logger.performance(
            {
                "step": self.state.step,
                "seconds_per_step": round(seconds / timer.steps, 4),
                "slices_per_second": round(slices / seconds, 3),
                "data_wait_fraction": round(wait / seconds, 5),
                "validate_seconds": round(timer.seconds[VALIDATION], 3),
                "save_seconds": round(timer.seconds[CHECKPOINT], 3),
                "write_seconds": round(self.saver.write_seconds if self.saver else 0.0, 3),
                **timings,
            }
        )
        caption, term = self.step.headline
        value = lines[-1].get(term)
        self.logger.progress(
            self.state.step,
            {
                caption: "-" if value is None else f"{value:.4f}",
                f"{self.data.unit}/s": f"{slices / seconds:.2f}",
                "data wait": f"{wait / seconds:.1%}",
            },
        )
        timer.restart()

    def _validate(self, validator: SliceValidator) -> bool:
        """Score the averaged network and export it if it is the best so far. Returns whether it is."""
        self._log()
        step = self.state.step
        with self.timer.measure(VALIDATION):
            self.monitor.beat(f"validation at step {step}")
            scores, panels = validator(self.state.network)
            self.logger.validation({"step": step, **scores})
            for name, picture in panels.items():
                save_png(self.run_dir / PANELS / f"step-{step:08d}-{name}.png", picture)
                self.logger.image(step, f"panels/{name}", picture)
            self.logger.info(f"validation at step {step}: {scores_text(scores)}")
            value = validator.selection_metric(scores)
            improved = value < self.state.best.get("value", float("inf"))
            if improved:
                self.state.best = {"step": step, "value": value}
                self._export()
        return improved

    def _export(self) -> None:
        if self.group.is_main:
            self.task.export(self.state.network, self.run_dir / EXPORT, self.data, self.state.step)

    def _save(self) -> None:
        """Save a checkpoint of the current step, once. Metrics up to this step are on disk before."""
        self._log()
        state = self.state
        if self.saved_step == state.step:
            return
        with self.timer.measure(CHECKPOINT):
            self.monitor.beat(f"checkpoint of step {state.step}")
            self.monitor.write_summary()
            tensors = state.tensors()
            if self.saver is not None:
                self.logger.flush()
                values = {
                    "step": state.step,
                    "identity": self.identity,
                    "options": to_dict(self.config),
                    "best": state.best,
                    "loss_scale": self.group.scaler_state,
                    "world": self.group.world,
                }
                self.saver.save(state.step, tensors, values)
        self.saved_step, self.last_save = state.step, time.monotonic()

    def _after_save(self) -> None:
        """Delete older checkpoints. Called in the thread of the saver."""
        best = self.state.best.get("step")
        keep = self.config.checkpoint.keep
        remove_old(self.run_dir / CHECKPOINTS, keep, None if best is None else int(best))

    def _finish(self, status: str, reason: str, code: int) -> int:
        self._save()
        if self.saver is not None:
            self.saver.wait()
        if status == "finished" and not self.state.best:
            self._export()
        if self.group.is_main:
            write_status(self.run_dir, status, self.state.step, self.total_steps, reason)
        self.stop_request.fulfilled()
        self.stop_request.close()
        text = f"{status} at step {self.state.step}/{self.total_steps}" + (f" ({reason})" if reason else "")
        self.logger.info(text + ("" if status == "finished" else "; the same command continues"))
        self.logger.close(status)
        if self.trace is not None:
            self.trace.close()
        # A launcher ends all ranks, after half a minute by SIGKILL, when one rank has left with STOPPED: no
        # rank may leave while rank 0 writes.
        self.group.barrier()
        return code


def is_due(step: int, every: int) -> bool:
    """Whether periodic work is due after `step`. `every` 0: never."""
    return every > 0 and step % every == 0


def scores_text(scores: Mapping[str, float]) -> str:
    """The scores over all modalities or labels as text."""
    return "  ".join(f"{k} {v:.4f}" for k, v in scores.items() if "/" not in k)
