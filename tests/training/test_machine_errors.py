"""Failures of the machine become MachineError; programming errors stay as they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import distributed as dist

from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.training.start_run import MachineError, machine_errors

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
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_names_the_options(error: Exception):
    with (
        pytest.raises(MachineError, match=r"rank 2: out of memory.*micro_batch_size.*untouched") as caught,
        machine_errors(Path("runs/x"), RANK_2),
    ):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: the launch timed out"), RuntimeError("shape mismatch"), KeyError("x")]
)
def test_other_errors_pass_as_they_are(error: Exception):
    with pytest.raises(type(error)) as caught, machine_errors(Path("runs/x"), RANK_2):
        raise error
    assert caught.value is error
