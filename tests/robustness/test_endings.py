"""Kind 7: a finished run and a failed run end under every launcher; ../slurm/test_endings.py has `srun`."""

from pathlib import Path

import pytest

from tests.distributed.launch import command, run
from tests.robustness.cohorts import damaged_validation
from tests.small import small_shard_set

pytestmark = pytest.mark.slow

SEGMENTER = (
    "task=segmenter", "segmenter.image_size=48", "segmenter.widths=[8,16]", "training.max_steps=1",
    "training.global_batch_size=2", "validation.slices=1", "validation.batch_size=1", "telemetry.report=false",
    "runtime.threads=1",
)  # fmt: skip
"""Of compiled code, Inductor keeps a pool of threads, which waits for the end of the interpreter."""
LAUNCHERS = {
    "python": "runtime.compile=default",
    "accelerate": "runtime.compile=off",
    "torchrun": "runtime.compile=off",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_shard_set(tmp_path_factory.mktemp("endings") / "shards")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("outcome", ["finished", "failed"])
def test_a_run_ends(launcher: str, outcome: str, shards: Path, tmp_path: Path):
    """The failed one fails after its first update, at the first validation."""
    read = shards if outcome == "finished" else damaged_validation(shards, tmp_path / "damaged")
    options = (*SEGMENTER, LAUNCHERS[launcher], f"data.shards={read}", f"runs_dir={tmp_path / 'runs'}")
    log = tmp_path / "log"
    status = run(command(options, 2, launcher, program=("brasyn_dist.train",)), log, timeout=600)
    text = log.read_text()
    assert status == (0 if outcome == "finished" else 1), text[-4000:]
    assert ("finished at step 1/1" in text) == (outcome == "finished")
    assert ("error: cannot read sample" in text) == (outcome == "failed")
