"""One Slurm for all tests of this folder; it leaves no process behind."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from brasyn_dist.config import parse_value, set_by_path
from tests.distributed.launch import SMALL
from tests.slurm.cluster import Cluster, why_not
from tests.small import small_shard_set

STEPS = 40


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("cluster") / "slurm", tmp_path_factory.mktemp("work"))
    # A CI that runs out of time sends SIGTERM: daemons must not stay behind then, either.
    before = signal.signal(signal.SIGTERM, lambda number, frame: pytest.exit("terminated", returncode=143))
    made.tool("start")
    try:
        yield made
    finally:
        made.tool("stop")
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="package")
def work(cluster: Cluster) -> Path:
    """Folder from which jobs are submitted; holds `runs`."""
    return cluster.work


@pytest.fixture(scope="package")
def config(work: Path) -> str:
    """A configuration file, as users have one, relative to the folder of `sbatch`: a run of seconds."""
    values: dict[str, object] = {}
    for item in SMALL:
        key, _, text = item.partition("=")
        set_by_path(values, key, parse_value(text))
    for key, value in {
        "data.shards": str(small_shard_set(work / "shards")),
        "training.global_batch_size": 4,
        "training.max_steps": STEPS,
        "checkpoint.every_steps": 15,
        "validation.every_steps": 20,
        "telemetry.log_every": 1,
    }.items():
        set_by_path(values, key, value)
    (work / "small.yaml").write_text(yaml.safe_dump(values))
    return "small.yaml"
