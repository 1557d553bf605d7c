"""Timings of all ranks, and a log for each rank.

    phases of the step (distributed/timing.py),
    waits of the loop (HostTimer)              --one row per rank--> performance.jsonl   means, slowest rank
                                                                 --> logs/summary.json   whole execution
    notes, stacks of a hang or crash, traceback of a failure ------> logs/rank-N.log

All ranks take equally long for a step, since they wait for each other. The own time of a rank (computation
and waiting for data, without waiting for others) shows which rank is slow. Ranks communicate when metrics are
logged, never in an update.
"""

import contextlib
import faulthandler
import math
import os
import resource
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

from brasyn_dist.common.files import write_json
from brasyn_dist.config import RunConfig
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.timing import COMMUNICATION
from brasyn_dist.training.watchdog import Peer, Watchdog

LOGS = "logs"
SUMMARY = "summary.json"
DATA_WAIT, AGREEMENT, VALIDATION, CHECKPOINT = "data_wait", "agree", "validate", "checkpoint"
"""Activities of the training loop beside updates."""
OWN = "own"
Timings = dict[str, float]
"""Of one rank and interval: seconds by name, and gauges (see `is_gauge`)."""


class HostTimer:
    """Wall-clock seconds of the training loop by activity, and its steps, since the last report."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new period."""
        self.seconds = dict.fromkeys((DATA_WAIT, AGREEMENT, VALIDATION, CHECKPOINT), 0.0)
        self.steps = 0
        self._start = time.monotonic()

    @contextlib.contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Add the time of the enclosed code to an activity."""
        begin = time.monotonic()
        yield
        self.seconds[activity] += time.monotonic() - begin

    @property
    def training_seconds(self) -> float:
        """Without validation and checkpoints."""
        elapsed = time.monotonic() - self._start
        return max(elapsed - self.seconds[VALIDATION] - self.seconds[CHECKPOINT], 1e-9)


class RankMonitor:
    """Log, watchdog and timings of this rank. A context manager around the training loop."""

    def __init__(self, config: RunConfig, group: ProcessGroup) -> None:
        self._group = group
        self._peers: list[Peer] = group.gather(Peer.here(group.rank))
        self._folder = config.run_dir / LOGS
        self._log = open_log(self._folder, group.rank)
        runtime = config.runtime
        minutes = runtime.hang_minutes or runtime.collective_timeout_minutes / 2
        self._watchdog = Watchdog(self._log, self._folder, self._peers[group.rank], self._peers, 60 * minutes)
        self._totals: list[Timings] = [{} for _ in self._peers]
        self._steps = 0

    def __enter__(self) -> "RankMonitor":
        self.note(f"{self._peers[self._group.rank]} of {self._group.world} starts")
        with contextlib.suppress(OSError, ValueError):
            faulthandler.enable(self._log)  # also crashes of native code
        self._watchdog.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.__exit__(kind, error, trace)
        self.note("ends" if error is None else "fails\n" + "".join(traceback.format_exception(error)))
        faulthandler.disable()
        with contextlib.suppress(OSError):
            self._log.close()

    def note(self, text: str) -> None:
        """Write a line to the log of this rank. Errors such as a full disk are ignored."""
        with contextlib.suppress(OSError, ValueError):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def beat(self, doing: str) -> None:
        """Report progress to the watchdog."""
        self._watchdog.beat(doing)

    def interval(self, step: int, timer: HostTimer) -> dict[str, Any]:
        """Close the interval up to `step`. All ranks call this together.

        Returns fields for performance.jsonl, equal on all ranks.
        It waits until the device has finished the phases of the interval.
        """
        phases = self._group.clock.take()
        host = {name: s for name, s in timer.seconds.items() if name != VALIDATION}
        row = {**phases, **host, OWN: computation(phases) + timer.seconds[DATA_WAIT]}
        gauges = {"peak_memory_gib": peak_memory_gib(), **gpu_statistics(self._group.device)}
        table = self._share({**row, **gauges})
        self._steps += timer.steps
        for total, new in zip(self._totals, table):
            for name, value in new.items():
                total[name] = value if is_gauge(name) else total.get(name, 0.0) + value
        per_step = ", ".join(f"{k} {v / timer.steps:.4f}" for k, v in row.items())
        self.note(f"step {step}: {per_step} s per step")
        return interval_fields(table, timer.steps, [p.host for p in self._peers])

    def _share(self, row: Timings) -> list[Timings]:
        """Rows of all ranks, on all ranks. Every rank has the same names."""
        names = sorted(row)
        table = torch.zeros(self._group.world, len(names), dtype=torch.float64)
        table[self._group.rank] = torch.tensor([row[n] for n in names], dtype=torch.float64)
        return [dict(zip(names, values)) for values in self._group.sum(table).tolist()]

    def write_summary(self) -> None:
        """Write logs/summary.json: timings of this execution for every rank."""
        if self._group.is_main and self._steps:
            with contextlib.suppress(OSError):
                write_json(self._folder / SUMMARY, timing_summary(self._totals, self._steps, self._peers))


def open_log(folder: Path, rank: int) -> TextIO:
    """The log, line-buffered; the null device if the folder cannot be written (rank 0 reports that)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"rank-{rank}.log").open("a", buffering=1)
    except OSError:
        return Path(os.devnull).open("w")


def computation(phases: Mapping[str, float]) -> float:
    """Seconds of the phases without the communication within them, which `phases` also lists."""
    return sum(phases.values()) - 2 * phases.get(COMMUNICATION, 0.0)


def interval_fields(table: Sequence[Timings], steps: int, hosts: Sequence[str]) -> dict[str, Any]:
    """Means over ranks in seconds per step, maxima of gauges, and the slowest rank by its own time."""
    fields: dict[str, Any] = {}
    for name in table[0]:
        values = [row[name] for row in table]
        if not is_gauge(name):
            fields[f"{name}_seconds_per_step"] = round(statistics.fmean(values) / steps, 5)
        elif known := [v for v in values if math.isfinite(v)]:
            fields[name] = round(max(known), 3)
    own = [row[OWN] for row in table]
    slowest = max(range(len(own)), key=own.__getitem__)
    return {
        **fields,
        "slowest_rank": slowest,
        "slowest_host": hosts[slowest],
        "slowest_to_median": round(own[slowest] / max(statistics.median(own), 1e-9), 3),
    }


def timing_summary(rows: Sequence[Timings], steps: int, peers: Sequence[Peer]) -> dict[str, Any]:
    """Timings of an execution: every rank, the slowest rank, the slowest node by the mean of its ranks."""
    ranks, nodes = [], {}  # type: ignore[var-annotated]
    for row, peer in zip(rows, peers):
        per_step = {k: round(v / steps, 5) for k, v in row.items() if not is_gauge(k)}
        gauges = {k: round(v, 3) for k, v in row.items() if is_gauge(k) and math.isfinite(v)}
        who = {"rank": peer.rank, "host": peer.host, "process": peer.pid}
        ranks.append({**who, "seconds_per_step": per_step, **gauges})
        nodes.setdefault(peer.host, []).append(row[OWN] / steps)
    means = {host: round(statistics.fmean(values), 5) for host, values in nodes.items()}
    return {
        "steps": steps,
        "slowest_rank": max(range(len(rows)), key=lambda r: rows[r][OWN]),
        "slowest_node": max(means, key=means.__getitem__),
        "own_seconds_per_step_by_node": means,
        "ranks": ranks,
    }


def is_gauge(name: str) -> bool:
    """Whether a value is a state, such as memory, instead of seconds."""
    return name == "peak_memory_gib" or name.startswith("gpu_")


def peak_memory_gib() -> float:
    """Largest memory of this process so far: of the allocator on CUDA, resident memory on other devices."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_statistics(device: torch.device) -> Timings:
    """Reserved memory, and the readings of nvidia-ml-py (NaN if it is not installed); empty without a GPU."""
    if device.type != "cuda":
        return {}
    values = {"gpu_reserved_gib": torch.cuda.memory_reserved(device) / 2**30}
    readings = {
        "gpu_utilization_percent": torch.cuda.utilization,
        "gpu_temperature_celsius": torch.cuda.temperature,
        "gpu_power_milliwatt": torch.cuda.power_draw,
    }
    for name, reading in readings.items():
        try:
            values[name] = float(reading(device))
        except (ImportError, RuntimeError):
            values[name] = math.nan
    return values
