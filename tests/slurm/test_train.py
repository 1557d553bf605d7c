"""slurm/train.sbatch on a real Slurm of two nodes: time limit, preemption, cancellation, a dead node, failures, locks."""

import json
from pathlib import Path

import pytest
import yaml

from brasyn_dist.config import set_by_path
from tests.conftest import REPOSITORY
from tests.distributed.launch import SMALL, final_state, logged_step, saved_step
from tests.slurm.cluster import Cluster, Job
from tests.small import small_shard_set

pytestmark = pytest.mark.slow

STEPS = 150
SCRIPT = str(REPOSITORY / "slurm/train.sbatch")
TWO_NODES = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def config(work: Path) -> str:
    """A configuration file, as users have one, relative to the folder of `sbatch`."""
    values: dict[str, object] = {}
    for item in SMALL:
        key, _, text = item.partition("=")
        set_by_path(values, key, yaml.safe_load(text))
    for key, value in {
        "data.shards": str(small_shard_set(work / "shards")),
        "training.max_steps": STEPS,
        "checkpoint.every_steps": 50,
        "validation.every_steps": 75,
        "telemetry.log_every": 1,
    }.items():
        set_by_path(values, key, value)
    (work / "small.yaml").write_text(yaml.safe_dump(values))
    return "small.yaml"


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, config: str) -> Path:
    """A run on two nodes from beginning to end."""
    cluster.submit(*TWO_NODES, SCRIPT, config, "name=undisturbed").completed()
    return cluster.work / "runs/undisturbed"


def attempts(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "attempts.jsonl").read_text().splitlines()]


def trains(job: Job, run_dir: Path, step: int = 5) -> None:
    job.wait(lambda: logged_step(run_dir) >= step, f"at step {step}")


def ends_like(run_dir: Path, undisturbed: Path) -> None:
    expected, actual = final_state(undisturbed, STEPS), final_state(run_dir, STEPS)
    assert [name for name in expected if actual[name] != expected[name]] == []
    assert json.loads((run_dir / "status.json").read_text())["status"] == "finished"


def test_two_nodes(undisturbed: Path):
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert environment["processes"] == 2 and environment["slurm"]["SLURM_JOB_NODELIST"] == "node[1-2]"
    first, last = attempts(undisturbed)
    assert first["slurm"]["SLURM_JOB_NODELIST"] == "node[1-2]" and first["git_commit"]  # type: ignore[index]
    assert (last["outcome"], last["verdict"], last["step"]) == ("finished", "finished", STEPS)
    assert yaml.safe_load((undisturbed / "config.yaml").read_text())["name"] == "undisturbed"


def test_time_limit_warns_saves_requeues_and_finishes_bit_identical(
    cluster: Cluster, config: str, undisturbed: Path
):
    """Slurm looks at time limits every 30 s: with these options it signals 5 to 35 s after the start."""
    run_dir = cluster.work / "runs/limited"
    options = (*TWO_NODES, "--time=1", "--signal=B:USR1@25")
    job = cluster.submit(*options, SCRIPT, config, "name=limited")
    job.wait(lambda: job.restarts == 1, "requeued")
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    job.completed()
    assert "SIGUSR1" in job.log and job.restarts == 1
    first_end = attempts(run_dir)[1]
    assert first_end["outcome"] == "stopped" and 0 < first_end["step"] < STEPS  # type: ignore[operator]
    ends_like(run_dir, undisturbed)


def test_preempted_by_a_higher_partition(cluster: Cluster, config: str, undisturbed: Path):
    run_dir = cluster.work / "runs/preempted"
    job = cluster.submit(*TWO_NODES, SCRIPT, config, "name=preempted")
    trains(job, run_dir)
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    urgent.completed()
    job.completed()
    assert job.restarts == 1
    assert attempts(run_dir)[1]["outcome"] == "stopped"
    ends_like(run_dir, undisturbed)


def test_cancelled_with_a_checkpoint_and_not_requeued(cluster: Cluster, config: str):
    run_dir = cluster.work / "runs/cancelled"
    job = cluster.submit(*TWO_NODES, SCRIPT, config, "name=cancelled")
    trains(job, run_dir)
    cluster.run("scancel", job.number)
    job.wait_for("CANCELLED")
    job.wait(lambda: "EndTime" in job.facts() and cluster.run("squeue", "--noheader").strip() == "", "gone")
    assert job.restarts == 0
    status = json.loads((run_dir / "status.json").read_text())
    assert status["status"] == "stopped" and status["step"] == saved_step(run_dir) >= 5
