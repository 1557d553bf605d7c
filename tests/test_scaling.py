"""The simulation of scaling against what can be worked out by hand, and the table in the docs against the program."""

import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.simulate_scaling import (
    TRAININGS,
    Machine,
    Network,
    Training,
    allreduce_seconds,
    exposed_seconds,
    update_seconds,
)
from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import Config, PatchRunConfig, RunConfig, load_config
from brasyn_dist.training.cost_model import count_update
from tests.conftest import REPOSITORY

GENERATOR, DISCRIMINATOR = Network(80.0e6, 0.95), Network(4.5e6, 0.05)
TRAINING = Training("made up", 25.0, 2.0, 4, (GENERATOR, DISCRIMINATOR), 1000, 16)
MACHINE = Machine(
    operations_per_second=1000, bytes_per_second=1e3, operator_seconds=0.01, link_gbits=10, link_efficiency=1.0, hop_seconds=0.0, gpus_per_node=4, bus_gbits=100
)  # fmt: skip


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
    assert update_seconds(TRAINING, 1, 16, MACHINE) == pytest.approx(0.040 + 16 * 0.025)
    assert update_seconds(TRAINING, 1, 64, MACHINE) == pytest.approx(
        4 * 0.040 + 64 * 0.025
    )  # four micro-batches
    assert update_seconds(TRAINING, 8, 64, fast) == pytest.approx(0.040 + 8 * 0.025)
    assert update_seconds(TRAINING, 7, 64, fast) == pytest.approx(
        0.040 + 10 * 0.025
    )  # the largest share decides
    slow = replace(MACHINE, link_gbits=1)
    assert update_seconds(TRAINING, 8, 64, slow) > update_seconds(TRAINING, 8, 64, MACHINE)


def test_the_slower_of_operations_and_bytes_decides():
    assert TRAINING.slice_seconds(MACHINE) == pytest.approx(0.025)
    assert replace(TRAINING, traffic=200.0).slice_seconds(MACHINE) == pytest.approx(0.1)  # half of it unfused


@pytest.mark.parametrize("name", list(TRAININGS))
def test_trainings_are_those_that_are_counted(name: str):
    training = TRAININGS[name]
    config = load_config(find_resource("configs", training.config), ["runtime.precision=bf16"], RunConfig)
    assert isinstance(config, Config | PatchRunConfig)
    counted = count_update(config, 16)
    assert training.operations == pytest.approx(counted.operations / 16, rel=0.01)
    assert training.traffic == pytest.approx(counted.traffic / 16, rel=0.01)
    assert training.operators == pytest.approx(counted.operators, rel=0.01)
    parameters = counted.generator_parameters + counted.discriminator_parameters
    assert sum(network.parameters for network in training.networks) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize(
    "arguments, page",
    [
        ((), "docs/how-to/slurm.md"),
        (("--training", "thesis"), "docs/how-to/slurm.md"),
        (("--hours",), "docs/explanation/performance.md"),
    ],
)
def test_tables_in_the_docs_are_what_the_program_prints(arguments: tuple[str, ...], page: str):
    printed = subprocess.run(
        [sys.executable, "benchmarks/simulate_scaling.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() in (REPOSITORY / page).read_text()
