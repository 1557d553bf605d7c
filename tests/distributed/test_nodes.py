"""Nodes with different numbers of GPUs or processes are refused by name, by whatever launcher they were started."""

import socket

import pytest

from brasyn_dist.common.launch_environment import check_environment
from brasyn_dist.distributed.process_group import check_devices, check_nodes
from brasyn_dist.errors import ConfigError


def test_nodes_with_different_numbers_of_processes_are_named():
    check_nodes([("a", 2), ("a", 2), ("b", 2), ("b", 2)])
    with pytest.raises(ConfigError, match=r"different numbers of processes \(a 3, b 1\); .*--nproc_per_node"):
        check_nodes([("a", 3), ("a", 3), ("a", 3), ("b", 1)])


@pytest.mark.parametrize("launcher", [{"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}], ids=str)
def test_more_processes_than_gpus_are_refused(launcher: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    check_devices(3)
    with pytest.raises(
        ConfigError, match=f"{socket.gethostname()} has 1 GPUs for 3 processes; .*--num_processes"
    ):
        check_devices(1)


def test_processes_of_srun_without_a_launcher_are_refused():
    """Each of them would be a run of its own."""
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS=4: srun .*accelerate launch or torchrun"):
        check_environment("no", step)
    check_environment("no", {**step, "RANK": "1"})
    check_environment("no", {"SLURM_STEP_NUM_TASKS": "1"})
