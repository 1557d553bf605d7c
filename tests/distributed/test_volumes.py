"""Runs of networks of volumes in real processes: killed, and on another number of processes."""

from pathlib import Path

import pytest

from tests.distributed.faults import train
from tests.distributed.launch import final_state, kill, logged_step, saved_step, wait_until
from tests.distributed.traces import losses, traced_batches
from tests.distributed.warm import WarmRun
from tests.training.volumes import TASKS, volume_shards

pytestmark = pytest.mark.slow
STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_shards(tmp_path_factory.mktemp("volumes"))


@pytest.mark.parametrize("task", TASKS)
def test_killed_or_on_one_process_a_run_ends_the_same(task: str, shards: Path, tmp_path: Path) -> None:
    """Bit-identical after a kill; the same patches and, up to rounding, the same losses on one process."""
    options = (
        f"data.shards={shards}", f"runs_dir={tmp_path}", f"training.max_steps={STEPS}", "checkpoint.every_steps=3",
        "validation.every_steps=6", "validation.slices=3", "telemetry.log_every=1", "telemetry.trace_batches=true",
        "optimizer.warmup_steps=2", "optimizer.base_rate=8e-2",
    )  # fmt: skip
    log = tmp_path / "log"
    for name, processes in (("undisturbed", 2), ("single", 1)):
        status = train((*options, f"name={name}"), log, processes, small=TASKS[task])
        assert status == 0, log.read_text()[-4000:]
    process = WarmRun((*options, "name=killed"), log, small=TASKS[task])
    alive = wait_until(process, lambda: logged_step(tmp_path / "killed") >= 5, log)
    kill(process)
    assert alive and 0 < saved_step(tmp_path / "killed") < STEPS, log.read_text()[-4000:]
    assert train((*options, "name=killed"), log, small=TASKS[task]) == 0, log.read_text()[-4000:]
    expected, actual = (
        final_state(tmp_path / name, STEPS, files_at_least=5) for name in ("undisturbed", "killed")
    )
    assert {f"{task}.safetensors", f"{task}_adam.safetensors", "average.safetensors"} <= set(expected)
    assert [name for name in expected if actual[name] != expected[name]] == []
    batches = [traced_batches(tmp_path / name) for name in ("undisturbed", "single", "killed")]
    assert batches[0] == batches[1] == batches[2] and len(batches[0]) == STEPS
    assert losses(tmp_path / "single") == pytest.approx(losses(tmp_path / "undisturbed"), rel=1e-3)
