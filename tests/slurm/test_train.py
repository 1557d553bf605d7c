"""slurm/train.sbatch on a real Slurm of two nodes: time limit, preemption, cancellation, failures."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.distributed.launch import final_state, logged_step, saved_step
from tests.slurm.cluster import Cluster, Job
from tests.slurm.conftest import STEPS

pytestmark = pytest.mark.slow

SCRIPT = str(REPOSITORY / "slurm/train.sbatch")
SMALL_SHARE = ("--cpus-per-task=1",)
"""Two jobs fit on a node. The GPUs (one for each node) exist only in the configuration."""
TWO_NODES = ("--nodes=2", *SMALL_SHARE)


@pytest.fixture(scope="module")
def hopeless(cluster: Cluster, config: str) -> Job:
    """Fails at every start. Submitted first, because it waits for its requeue most of the time."""
    return cluster.submit("--nodes=1", *SMALL_SHARE, SCRIPT, config, "name=hopeless", "data.shards=nowhere")


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, config: str, hopeless: Job) -> Path:
    """A run on two nodes from beginning to end."""
    cluster.submit(*TWO_NODES, SCRIPT, config, "name=undisturbed").completed()
    return cluster.work / "runs/undisturbed"


def attempts(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "attempts.jsonl").read_text().splitlines()]


def ends(run_dir: Path) -> list[tuple[object, object]]:
    return [(a["outcome"], a["verdict"]) for a in attempts(run_dir) if a["event"] == "end"]


def status(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "status.json").read_text())


def trains(job: Job, run_dir: Path, step: int = 5) -> None:
    job.wait(lambda: logged_step(run_dir) >= step, f"at step {step}")


def differing(run_dir: Path, undisturbed: Path) -> list[str]:
    expected, actual = final_state(undisturbed, STEPS), final_state(run_dir, STEPS)
    return [name for name in expected if actual[name] != expected[name]]


def freeze(job: Job) -> int:
    """Stop one rank: a step that takes as long as the test likes. Returns its process number."""
    wanted = f"SLURM_JOB_ID={job.number}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words and b"RANK=1" in words:
            os.kill(int(folder.name), signal.SIGSTOP)
            return int(folder.name)
    raise AssertionError(f"no rank 1 of job {job.number}")


def test_two_nodes(undisturbed: Path):
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert environment["processes"] == 2 and environment["slurm"]["SLURM_JOB_NODELIST"] == "node[1-2]"
    assert environment["slurm"]["SLURM_GPUS_ON_NODE"] == "1"
    first, last = attempts(undisturbed)
    assert first["slurm"]["SLURM_JOB_NODELIST"] == "node[1-2]" and first["git_commit"]  # type: ignore[index]
    assert (last["outcome"], last["verdict"], last["step"]) == ("finished", "finished", STEPS)
    assert yaml.safe_load((undisturbed / "config.yaml").read_text())["name"] == "undisturbed"


def test_time_limit_warns_saves_requeues_and_finishes_bit_identical(
    cluster: Cluster, config: str, undisturbed: Path
):
    """Slurm checks time limits every 30 s: with these options it signals about 5 to 35 s after the start."""
    run_dir = cluster.work / "runs/limited"
    job = cluster.submit(*TWO_NODES, "--time=2", "--signal=B:USR1@85", SCRIPT, config, "name=limited")
    job.wait(lambda: logged_step(run_dir) >= 5 or job.restarts > 0, "at step 5")
    if job.restarts == 0:
        rank = freeze(job)
        job.wait(lambda: "SIGUSR1" in job.log, "warned")
        os.kill(rank, signal.SIGCONT)
    job.wait(lambda: job.restarts == 1, "requeued")
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    job.completed()
    assert ends(run_dir) == [("stopped", "requeue"), ("finished", "finished")]
    first = attempts(run_dir)[1]
    assert "SIGUSR1" in str(first["reason"]) and 0 < int(str(first["step"])) < STEPS
    assert differing(run_dir, undisturbed) == []


def test_preempted_by_a_higher_partition(cluster: Cluster, config: str, undisturbed: Path):
    """Slurm sends SIGCONT and SIGTERM to the ranks, and waits for 20 s."""
    run_dir = cluster.work / "runs/preempted"
    job = cluster.submit(*TWO_NODES, SCRIPT, config, "name=preempted")
    trains(job, run_dir)
    freeze(job)
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=true")
    urgent.completed()
    job.completed()
    assert ends(run_dir) == [("stopped", "requeue"), ("finished", "finished")]
    assert 0 < int(str(attempts(run_dir)[1]["step"])) < STEPS
    assert differing(run_dir, undisturbed) == []


def test_cancelled_with_a_checkpoint_and_not_requeued_while_another_job_is_kept_out(
    cluster: Cluster, config: str
):
    run_dir = cluster.work / "runs/cancelled"
    job = cluster.submit(*TWO_NODES, SCRIPT, config, "name=cancelled", "training.max_steps=100000")
    trains(job, run_dir)
    intruder = cluster.submit("--nodes=1", *SMALL_SHARE, SCRIPT, config, "name=cancelled")
    intruder.wait_for("FAILED")
    assert (
        f"belongs to job {job.number}, which is RUNNING" in intruder.log and "Traceback" not in intruder.log
    )
    cluster.run("scancel", job.number)
    job.wait_for("CANCELLED")
    job.wait(lambda: cluster.run("squeue", "--noheader", "--jobs", job.number).strip() == "", "gone")
    assert job.restarts == 0
    assert status(run_dir)["status"] == "stopped" and status(run_dir)["step"] == saved_step(run_dir)
    assert saved_step(run_dir) >= 5


def test_person_asks_for_a_stop(cluster: Cluster, config: str):
    """A STOP file, not from the job: it is not requeued."""
    run_dir = cluster.work / "runs/asked"
    run_dir.mkdir(parents=True)
    (run_dir / "STOP").touch()
    job = cluster.submit("--nodes=1", *SMALL_SHARE, SCRIPT, config, "name=asked")
    job.completed()
    assert ends(run_dir) == [("asked", "stop")] and job.restarts == 0 and saved_step(run_dir) == 1


def test_three_failures_at_the_same_step_end_the_job(cluster: Cluster, hopeless: Job):
    run_dir = cluster.work / "runs/hopeless"
    hopeless.wait_for("FAILED")
    assert hopeless.restarts == 2
    assert ends(run_dir) == [("failed", "requeue")] * 2 + [("failed", "give-up")]
    assert "failed 3 times" in str(status(run_dir)["reason"]) and "nowhere" in str(status(run_dir)["reason"])


def test_the_other_node_finishes_after_a_node_failure(cluster: Cluster, config: str):
    """A job of one or two nodes continues on one when the other fails."""
    run_dir = cluster.work / "runs/survivor"
    cluster.wait_until_idle()
    job = cluster.submit("--nodes=1-2", *SMALL_SHARE, SCRIPT, config, "name=survivor")
    trains(job, run_dir)
    assert job.facts()["NodeList"] == "node[1-2]"
    cluster.tool("power-off", "2")
    try:
        job.wait(lambda: job.restarts >= 1, "requeued")
        job.completed()
        assert job.facts()["NodeList"] == "node1"
        assert status(run_dir)["status"] == "finished" and logged_step(run_dir) == STEPS
        assert json.loads((run_dir / "environment.json").read_text())["processes"] == 1
    finally:
        cluster.tool("power-on", "2")
        cluster.wait_until_idle()


def test_segmenter(cluster: Cluster, config: str):
    """The configuration names the task; the same script trains a segmenter."""
    values = yaml.safe_load((cluster.work / config).read_text())
    sections = ("data", "training", "checkpoint", "validation", "telemetry", "runtime")
    kept = {name: values[name] for name in sections if name in values}
    kept.get("training", {}).pop("updates_per_batch", None)
    kept.get("runtime", {}).pop("encoder_execution", None)
    small = {"task": "segmenter", "segmenter": {"image_size": 48, "widths": [8, 16]}, **kept}
    (cluster.work / "segmenter.yaml").write_text(yaml.safe_dump(small))
    job = cluster.submit(
        "--nodes=1", *SMALL_SHARE, SCRIPT, "segmenter.yaml", "name=segmenter", "training.max_steps=3"
    )
    job.completed()
    run_dir = cluster.work / "runs/segmenter"
    assert status(run_dir)["status"] == "finished"
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["task"] == "segmenter"
