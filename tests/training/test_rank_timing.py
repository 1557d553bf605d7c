"""Timings: phases add up, the slow rank is found although all ranks take equally long, GPU readings are recorded."""

import math
import time

import pytest
import torch

from brasyn_dist.distributed.timing import COMMUNICATION, PhaseClock
from brasyn_dist.training.rank_timing import (
    OWN,
    Timings,
    computation,
    gpu_statistics,
    interval_fields,
    timing_summary,
)
from brasyn_dist.training.watchdog import Peer


def test_phases_on_the_host(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 2.0, 2.5, 2.75, 3.0, 10.0, 11.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = PhaseClock(torch.device("cpu"))
    with clock.phase("generator"):  # 0.0 .. 3.0
        clock.ready()  # first bucket: 2.0
        clock.ready()  # last bucket: 2.5
        clock.exchanged()  # 2.75
        clock.exchanged()  # a micro-batch without exchange: nothing
    with clock.phase("generator"):  # 10.0 .. 11.0
        pass
    seconds = clock.take()
    assert seconds == {"generator": 4.0, COMMUNICATION: 0.25}
    assert computation(seconds) == 3.75
    assert clock.take() == {}


class FakeEvent:
    """A CUDA event on a device that works through its queue later: times exist only once it has got there."""

    now, waits = 0.0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.now += 1.0
        self.time = FakeEvent.now

    def synchronize(self) -> None:
        FakeEvent.waits += 1

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 1000 * (other.time - self.time)


def test_phases_on_a_gpu_wait_for_nothing_before_they_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock = PhaseClock(torch.device("cuda"))
    with clock.phase("generator"):
        clock.ready()
        clock.exchanged()
    assert FakeEvent.waits == 0
    assert clock.take() == {"generator": 3.0, COMMUNICATION: 1.0}


def rows() -> list[Timings]:
    """Two steps on two nodes: rank 2 computes longest, so the others wait for it; all take 1.0 s a step."""
    own = [1.2, 1.0, 1.9, 1.1]
    return [
        {"generator": 1.5, "discriminator": 0.5, COMMUNICATION: 2.0 - o, OWN: o, "peak_memory_gib": 3.0 + o, "gpu_power_milliwatt": math.nan}
        for o in own
    ]  # fmt: skip


def test_slowest_rank_is_the_one_that_waits_least():
    fields = interval_fields(rows(), 2, ["a", "a", "b", "b"])
    assert fields["generator_seconds_per_step"] == 0.75
    assert fields["communication_seconds_per_step"] == pytest.approx(0.35)
    assert (fields["slowest_rank"], fields["slowest_host"]) == (2, "b")
    assert fields["slowest_to_median"] == pytest.approx(1.9 / 1.15, abs=1e-3)
    assert fields["peak_memory_gib"] == 4.9 and "gpu_power_milliwatt" not in fields


def test_summary_has_every_rank_and_the_slowest_node():
    peers = [Peer(r, 100 + r, "ab"[r // 2]) for r in range(4)]
    whole = timing_summary(rows(), 2, peers)
    assert whole["slowest_rank"] == 2 and whole["slowest_node"] == "b"
    assert whole["own_seconds_per_step_by_node"] == {"a": 0.55, "b": 0.75}
    assert [r["rank"] for r in whole["ranks"]] == [0, 1, 2, 3]
    assert whole["ranks"][2]["seconds_per_step"][COMMUNICATION] == pytest.approx(0.05)
    assert whole["ranks"][1]["peak_memory_gib"] == 4.0 and "gpu_power_milliwatt" not in whole["ranks"][1]


def test_gpu_statistics_without_the_library_are_unknown_and_without_a_gpu_absent(
    monkeypatch: pytest.MonkeyPatch,
):
    assert gpu_statistics(torch.device("cpu")) == {}

    def missing(device: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**31)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    monkeypatch.setattr(torch.cuda, "temperature", missing)
    monkeypatch.setattr(torch.cuda, "power_draw", missing)
    values = gpu_statistics(torch.device("cuda"))
    assert values["gpu_reserved_gib"] == 2.0 and values["gpu_utilization_percent"] == 87
    assert math.isnan(values["gpu_temperature_celsius"]) and math.isnan(values["gpu_power_milliwatt"])
