"""One Slurm for all tests of this folder; it leaves no process behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("cluster") / "slurm", tmp_path_factory.mktemp("work"))
    made.tool("start")
    try:
        yield made
    finally:
        made.tool("stop")


@pytest.fixture(scope="package")
def work(cluster: Cluster) -> Path:
    """Folder from which jobs are submitted; holds `runs`."""
    return cluster.work
