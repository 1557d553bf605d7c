"""The simulation of scaling against what can be worked out by hand, and the table in the docs against the program."""

import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.simulate_scaling import (
    DISCRIMINATOR,
    GENERATOR,
    Machine,
    allreduce_seconds,
    exposed_seconds,
    update_seconds,
)
from tests.conftest import REPOSITORY

MACHINE = Machine(link_gbits=10, link_efficiency=1.0, hop_seconds=0.0, gpus_per_node=4, bus_gbits=100)


def test_ring_moves_twice_the_gradient_over_the_slowest_link():
    gigabyte = 1e9
    assert allreduce_seconds(gigabyte, 1, MACHINE) == 0
    assert allreduce_seconds(gigabyte, 4, MACHINE) == pytest.approx(2 * 3 / 4 * 8 / 100)
    assert allreduce_seconds(gigabyte, 8, MACHINE) == pytest.approx(2 * 7 / 8 * 8 / 10)
    hops = replace(MACHINE, hop_seconds=1e-3)
    assert allreduce_seconds(0, 8, hops) == pytest.approx(14e-3)


@pytest.mark.parametrize("network", [GENERATOR, DISCRIMINATOR])
def test_waiting_for_gradients(network):
    whole = allreduce_seconds(network.parameters * 4, 8, MACHINE)
    assert exposed_seconds(network, 0.0, 8, MACHINE) == pytest.approx(whole)  # nothing to hide behind
    buckets = round(network.parameters * 4 / (25 * 2**20))
    slow = 1000.0  # all but the last bucket is hidden
    assert exposed_seconds(network, slow, 8, MACHINE) == pytest.approx(whole / max(buckets, 1))
    assert exposed_seconds(network, slow, 1, MACHINE) == 0


def test_update_is_computing_plus_waiting():
    fast = replace(MACHINE, link_gbits=1e12, bus_gbits=1e12)
    assert update_seconds(1, 64, MACHINE) == pytest.approx(0.040 + 64 * 0.025)
    assert update_seconds(8, 64, fast) == pytest.approx(0.040 + 8 * 0.025)
    assert update_seconds(7, 64, fast) == pytest.approx(0.040 + 10 * 0.025)  # the largest share decides
    assert update_seconds(8, 64, replace(MACHINE, link_gbits=1)) > update_seconds(8, 64, MACHINE)


def test_table_in_the_docs_is_what_the_program_prints():
    printed = subprocess.run(
        [sys.executable, "benchmarks/simulate_scaling.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() in (REPOSITORY / "docs/how-to/slurm.md").read_text()
