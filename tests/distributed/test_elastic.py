"""The number of processes may change at any restart, and ranks may take unequal shares: same global batches, same losses."""

import json
import sys
from pathlib import Path

import pytest

from brasyn_dist.data.loading.sampler import rank_rows
from brasyn_dist.errors import ConfigError
from tests.distributed.faults import PATIENCE, train
from tests.distributed.launch import (
    SMALL,
    kill,
    saved_step,
    start,
    wait_until,
)
from tests.distributed.traces import losses, traced_batches
from tests.distributed.warm import WarmRun, free_port
from tests.small import small_shard_set

STEPS = 12


def options(work: Path, name: str, *more: str) -> tuple[str, ...]:
    return (
        f"data.shards={small_shard_set(work / 'shards')}", f"training.max_steps={STEPS}", "checkpoint.every_steps=3",
        "validation.every_steps=0", "telemetry.log_every=1", "telemetry.trace_batches=true", f"runs_dir={work / 'runs'}",
        f"name={name}", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> Path:
    """One process from beginning to end."""
    assert train(options(work, "undisturbed"), work / "undisturbed.log", processes=1) == 0
    return work / "runs/undisturbed"


def check_same_course(run_dir: Path, undisturbed: Path) -> None:
    expected, actual = traced_batches(undisturbed), traced_batches(run_dir)
    assert sorted(expected) == list(range(1, STEPS + 1)) and all(len(b) == 8 for b in expected.values())
    assert actual == expected
    assert losses(run_dir) == pytest.approx(losses(undisturbed), rel=2e-3)


@pytest.mark.slow
def test_four_then_two_then_three_processes(work: Path, undisturbed: Path):
    """Killed on 4, killed on 2, finished on 3, whose shares of 8 slices are uneven."""
    run_dir, log = work / "runs/four-two-three", work / "four-two-three.log"
    arguments = options(work, run_dir.name)
    for processes, saved in ((4, 3), (2, 6)):
        process = WarmRun(arguments, log, processes)
        assert wait_until(process, lambda: saved_step(run_dir) >= saved, log, PATIENCE)  # noqa: B023
        kill(process)
        assert saved_step(run_dir) < STEPS
    assert train(arguments, log, processes=3) == 0, log.read_text()[-4000:]
    assert {p.name.split("-")[1] for p in run_dir.glob("trace-*")} == {"4", "2", "3"}
    check_same_course(run_dir, undisturbed)


@pytest.mark.slow
def test_torchrun_goes_on_with_one_node_when_the_other_is_killed(work: Path, undisturbed: Path):
    """`--nnodes 1:2`: two agents on this host stand for two nodes; the agent without the rendezvous is killed with its rank."""
    run_dir, port = work / "runs/shrinks", free_port()
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    logs = [work / f"node-{n}.log" for n in range(2)]
    wanted = options(work, run_dir.name, "checkpoint.every_steps=2")
    agents = []
    try:
        for node, log in enumerate(logs):
            agents.append(start(elastic_agent(port, node, wanted), log, environment))
        assert wait_until(agents[0], lambda: saved_step(run_dir) >= 2, logs[0], PATIENCE), logs[0].read_text()
        kill(agents[1])
        assert agents[0].wait(PATIENCE) == 0, logs[0].read_text()[-4000:]
    finally:
        for agent in agents:
            kill(agent)
    said = "".join(log.read_text() for log in logs)
    assert "processes     2 x CPU" in said and "processes     1 x CPU" in logs[0].read_text()
    assert "continues at step" in logs[0].read_text()
    check_same_course(run_dir, undisturbed)


def elastic_agent(port: int, node: int, wanted: tuple[str, ...]) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc_per_node", "1", "--max-restarts", "3",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "elastic",
        "--rdzv-conf", f"is_host={int(node == 0)},last_call_timeout=12", "-m", "brasyn_dist.train", *SMALL, *wanted,
    ]  # fmt: skip


@pytest.mark.slow
def test_unequal_shares_change_no_batch(work: Path, undisturbed: Path):
    name = "unequal"
    assert train(options(work, name, "runtime.rank_shares=[3,1]"), work / f"{name}.log") == 0
    first_rows = {
        json.loads(p.read_text().splitlines()[0])["first_row"]
        for p in (work / "runs" / name).glob("trace-2-*")
    }
    assert first_rows == {0, 6}
    check_same_course(work / "runs" / name, undisturbed)


@pytest.mark.parametrize("rows", [3, 8, 64, 65])
@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (5.0, 3.0, 1.0), (1.0, 100.0, 1.0), (0.001, 0.001, 9.0)])
def test_shares_divide_the_batch_without_gaps(rows: int, shares: tuple[float, ...]):
    parts = [rank_rows(rows, r, 3, shares) for r in range(3)]
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(rows))
    assert all(p.stop > p.start for p in parts)
    if rows >= 64:
        for part, share in zip(parts, shares):
            assert abs((part.stop - part.start) - rows * share / sum(shares)) <= 2


def test_shares_must_fit_the_processes():
    with pytest.raises(ConfigError, match="2 shares for 3 processes"):
        rank_rows(8, 0, 3, (1.0, 2.0))
