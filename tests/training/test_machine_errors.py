"""Failures of the machine become MachineError; programming errors stay as they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch import distributed as dist

from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.training.build import MachineError, machine_errors

RANK_2 = cast(Distributed, SimpleNamespace(rank=2, runtime=SimpleNamespace(collective_timeout_minutes=30.0)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"),
        RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"),
        RuntimeError("Application timeout caused pair closure"),
        dist.DistBackendError("NCCL error: remote process exited"),
        dist.DistStoreError("wait timeout after 300000ms"),
    ],
)
def test_lost_rank(error: RuntimeError):
    with (
        pytest.raises(
            MachineError, match=r"rank 2: no answer.*30 minutes.*runs/x/logs/rank-\*.log.*same command"
        ),
        machine_errors(Path("runs/x"), RANK_2),
    ):
        raise error


def test_file_system():
    with (
        pytest.raises(MachineError, match=r"rank 2: runs/x: .*No space left.*Free space.*untouched"),
        machine_errors(Path("runs/x"), RANK_2),
    ):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: the launch timed out"), RuntimeError("shape mismatch"), KeyError("x")]
)
def test_other_errors_pass_as_they_are(error: Exception):
    with pytest.raises(type(error)) as caught, machine_errors(Path("runs/x"), RANK_2):
        raise error
    assert caught.value is error
