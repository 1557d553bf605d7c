"""Every Accelerate configuration in launch/ starts what its comment says; what needs CUDA is started on CPUs here, as named.

The configurations for GPUs differ from a run on CPUs by the device that brasyn_dist finds, not by how processes are started, so
they are really launched; NCCL, and a rank taking its GPU, are not exercised where there is no GPU.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.distributed.launch import REPOSITORY, SMALL, kill, run, start
from tests.small import small_shard_set

LAUNCH = REPOSITORY / "launch"
PLAIN = sorted(p.name for p in LAUNCH.glob("*.yaml") if not p.name.startswith("deepspeed"))


def test_there_is_one_for_each_way():
    assert PLAIN == ["cpu.yaml", "one_node.yaml", "several_nodes.yaml", "single_gpu.yaml"]


@pytest.mark.parametrize("name", PLAIN)
def test_accelerate_reads_it_and_knows_every_key(name: str):
    from accelerate.commands.config.config_args import load_config_from_file

    values = yaml.safe_load((LAUNCH / name).read_text())
    config = load_config_from_file(str(LAUNCH / name))  # raises on unknown keys
    assert config.num_processes == values["num_processes"] and config.num_machines == values["num_machines"]
    assert config.mixed_precision == "no" and config.use_cpu is False


@pytest.mark.parametrize("name", PLAIN)
def test_accelerate_takes_numbers_from_the_command_line_before_the_file(name: str):
    """The launcher's own merging of file and options, without launching."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = [
        "--config_file",
        str(LAUNCH / name),
        "--num_machines",
        "3",
        "--machine_rank",
        "2",
        "--num_processes",
        "6",
    ]
    words += [
        "--main_process_ip",
        "10.0.0.1",
        "--main_process_port",
        "1234",
        "-m",
        "brasyn_dist.train",
        "name=x",
    ]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (arguments.num_machines, arguments.machine_rank, arguments.num_processes) == (3, 2, 6)
    assert arguments.main_process_ip == "10.0.0.1" and arguments.training_script_args == ["name=x"]


def launcher(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / name), *options]


def overrides(folder: Path, name: str) -> list[str]:
    shards = small_shard_set(folder / "shards")
    return [
        "-m", "brasyn_dist.train", *SMALL, f"data.shards={shards}", f"runs_dir={folder / 'runs'}", f"name={name}",
        "training.max_steps=2", "validation.every_steps=0",
    ]  # fmt: skip


def environment(folder: Path, name: str) -> dict[str, object]:
    assert json.loads((folder / "runs" / name / "status.json").read_text())["status"] == "finished"
    return json.loads((folder / "runs" / name / "environment.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("single_gpu.yaml", 1), ("one_node.yaml", 2)])
def test_one_node(tmp_path: Path, name: str, processes: int):
    log = tmp_path / "log"
    port = ["--main_process_port", "0"] if processes > 1 else []
    assert run([*launcher(name, *port), *overrides(tmp_path, "x")], log) == 0, log.read_text()[-4000:]
    assert environment(tmp_path, "x")["processes"] == processes
    table = log.read_text()
    assert "threads for tensors" in table and "communication" in table
    assert ("gloo, timeout 30 min" in table) == (processes == 2)


@pytest.mark.slow
def test_several_nodes_with_a_launcher_on_each(tmp_path: Path):
    """Two launchers of one host; tests/slurm has two hosts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [
        launcher("several_nodes.yaml", "--machine_rank", rank, "--main_process_port", port)
        + overrides(tmp_path, "x")
        for rank in ("0", "1")
    ]
    started = [start(command, tmp_path / f"{rank}.log") for rank, command in enumerate(commands)]
    try:
        statuses = [process.wait(300) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            kill(process)
        raise
    assert statuses == [0, 0], (tmp_path / "0.log").read_text()[-4000:]
    assert environment(tmp_path, "x")["processes"] == 2
