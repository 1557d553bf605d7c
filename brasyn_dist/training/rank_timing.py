"""What every rank does with its time, and what becomes of it when it fails or hangs.

    phases of the step (phases.py), waits of the loop --one row a rank--> table --> performance.jsonl   means, slowest rank
                                                                                --> logs/summary.json   all ranks, whole execution
    notes, stacks of a hang or crash, traceback of a failure -----------------> logs/rank-N.log

A rank's own time is what it spends computing and waiting for data, without waiting for the others: all ranks take equally
long for a step, and only their own time shows who is the slow one. Ranks meet here when metrics are logged, never in an update.
"""

import contextlib
import faulthandler
import math
import os
import resource
import statistics
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

from brasyn_dist.common.files import write_json
from brasyn_dist.config import RunConfig
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.distributed.timing import COMMUNICATION
from brasyn_dist.training.watchdog import Peer, Watchdog

LOGS = "logs"
SUMMARY = "summary.json"
DATA_WAIT = "data_wait"
OWN = "own"
Row = dict[str, float]
"""Of one rank and interval: seconds by name; gauges, whose names do not end so, as they are."""


class Observer:
    """This rank's log, watchdog and timings. Use it around the training loop."""

    def __init__(self, config: RunConfig, distributed: Distributed) -> None:
        self._distributed = distributed
        self._peers: list[Peer] = distributed.gather(Peer.here(distributed.rank))
        self._folder = config.run_dir / LOGS
        self._log = open_log(self._folder, distributed.rank)
        runtime = config.runtime
        minutes = runtime.hang_minutes or runtime.collective_timeout_minutes / 2
        me = self._peers[distributed.rank]
        self._watchdog = Watchdog(self._log, self._folder, me, self._peers, 60 * minutes)
        self._pending: Row = {}
        self._rows: list[Row] = [{} for _ in self._peers]
        self._steps = 0

    def __enter__(self) -> "Observer":
        self.note(f"{self._peers[self._distributed.rank]} of {self._distributed.world} starts")
        with contextlib.suppress(OSError, ValueError):
            faulthandler.enable(self._log)  # crashes of native code, too
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
        """A line for this rank's log. A full disk is not its business."""
        with contextlib.suppress(OSError, ValueError):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def beat(self, doing: str) -> None:
        """This rank gets on."""
        self._watchdog.beat(doing)

    def collect(self) -> None:
        """Take the phases that have ended since. Waits for the device if it is still at them."""
        phases = self._distributed.clock.take()
        for name, seconds in phases.items():
            self._pending[name] = self._pending.get(name, 0.0) + seconds

    def interval(self, step: int, steps: int, host: Mapping[str, float]) -> dict[str, Any]:
        """Close an interval of `steps` updates up to `step`: fields for performance.jsonl, the same on all ranks.

        `host` has seconds of this rank by name, as `phases` would not know them; `data_wait` is one. Every rank must call this.
        """
        self.collect()
        row = {**self._pending, **host, OWN: computed(self._pending) + host.get(DATA_WAIT, 0.0)}
        gauges = {"peak_memory_gib": peak_memory_gib(), **gpu_statistics(self._distributed.device)}
        table = self._share({**row, **gauges})
        self._pending = {}
        self._steps += steps
        for total, new in zip(self._rows, table):
            for name, value in new.items():
                total[name] = value if name in gauges else total.get(name, 0.0) + value
        self.note(f"step {step}: " + ", ".join(f"{k} {v / steps:.4f}" for k, v in row.items()) + " s a step")
        return interval_fields(table, steps, [p.host for p in self._peers])

    def _share(self, row: Row) -> list[Row]:
        """Rows of all ranks, on all ranks; every rank has the same names."""
        names, rank = sorted(row), self._distributed.rank
        table = torch.zeros(self._distributed.world, len(names), dtype=torch.float64)
        table[rank] = torch.tensor([row[n] for n in names], dtype=torch.float64)
        return [dict(zip(names, values)) for values in self._distributed.sum(table).tolist()]

    def write_summary(self) -> None:
        """logs/summary.json: this execution, rank by rank."""
        if self._distributed.is_main and self._steps:
            with contextlib.suppress(OSError):
                write_json(self._folder / SUMMARY, summary(self._rows, self._steps, self._peers))


def open_log(folder: Path, rank: int) -> TextIO:
    """Appends, line by line; to nowhere if the folder cannot be written (rank 0 will say so)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"rank-{rank}.log").open("a", buffering=1)
    except OSError:
        return Path(os.devnull).open("w")


def computed(phases: Mapping[str, float]) -> float:
    """Seconds of phases without the communication that lies within them."""
    return sum(phases.values()) - 2 * phases.get(COMMUNICATION, 0.0)


def interval_fields(table: Sequence[Row], steps: int, hosts: Sequence[str]) -> dict[str, Any]:
    """Means over ranks, in seconds a step, and the slowest rank by its own time; gauges: the largest of any rank."""
    fields: dict[str, Any] = {}
    for name in table[0]:
        values = [row[name] for row in table]
        if is_gauge(name):
            known = [v for v in values if math.isfinite(v)]
            if known:
                fields[name] = round(max(known), 3)
        else:
            fields[f"{name}_seconds_per_step"] = round(statistics.fmean(values) / steps, 5)
    own = [row[OWN] for row in table]
    slowest = max(range(len(own)), key=own.__getitem__)
    return {
        **fields,
        "slowest_rank": slowest,
        "slowest_host": hosts[slowest],
        "slowest_to_median": round(own[slowest] / max(statistics.median(own), 1e-9), 3),
    }


def summary(rows: Sequence[Row], steps: int, peers: Sequence[Peer]) -> dict[str, Any]:
    """Of a whole execution: every rank, the slowest one, and the slowest node (by the mean of its ranks)."""
    ranks = []
    for row, peer in zip(rows, peers):
        per_step = {k: round(v / steps, 5) for k, v in row.items() if not is_gauge(k)}
        gauges = {k: round(v, 3) for k, v in row.items() if is_gauge(k) and math.isfinite(v)}
        ranks.append(
            {
                "rank": peer.rank,
                "host": peer.host,
                "process": peer.pid,
                "seconds_per_step": per_step,
                **gauges,
            }
        )
    nodes: dict[str, list[float]] = {}
    for row, peer in zip(rows, peers):
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
    return name == "peak_memory_gib" or name.startswith("gpu_")


def peak_memory_gib() -> float:
    """Largest memory of this process so far: the device's allocator on CUDA, resident memory elsewhere."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu_statistics(device: torch.device) -> Row:
    """Reserved memory, and what nvidia-ml-py tells where it is installed (NaN elsewhere); empty without a GPU."""
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
