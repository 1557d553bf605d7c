"""A finished run and a failed run that `srun` starts without a launcher end, and the step with them."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.robustness.cohorts import damaged_validation
from tests.slurm.cluster import TIMEOUT, Cluster

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("outcome", ["finished", "failed"])
def test_a_run_of_srun_ends(outcome: str, cluster: Cluster, config: str):
    shards = cluster.work / "shards"
    if outcome == "failed":
        shards = damaged_validation(shards, cluster.work / "damaged")
    words = [
        "srun", "--ntasks=1", "--cpus-per-task=1", sys.executable, "-m", "brasyn_dist.train", "--config", config,
        f"name=srun-{outcome}", "training.max_steps=1", f"data.shards={shards}",
    ]  # fmt: skip
    environment = {**cluster.environment, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        words, env=environment, cwd=cluster.work, capture_output=True, text=True, timeout=TIMEOUT
    )
    text = done.stdout + done.stderr
    assert done.returncode == (0 if outcome == "finished" else 1), text[-4000:]
    assert ("finished at step 1/1" in text) == (outcome == "finished")
    assert ("error: cannot read sample" in text) == (outcome == "failed")
    status = (cluster.work / f"runs/srun-{outcome}/status.json").read_text()
    assert f'"{outcome}"' in status
