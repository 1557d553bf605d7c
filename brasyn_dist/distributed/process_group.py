"""Processes, devices and mixed precision. Only this package imports accelerate and deepspeed.

ProcessGroup                    rank, world, device, phase timing, agreements between ranks (on the host)
  Distributed(runtime)          one per process; for `accelerate launch`, `torchrun` and plain `python -m`
  SingleProcess(runtime)        without Accelerate (single_process.py)
  .prepare(network, optimiser)  a Trainable (trainable.py): DistributedDataParallel, or ZeRO if the launch
                                configuration selects DeepSpeed (zero.py)
"""

import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from brasyn_dist.common.launch_environment import check_environment, number
from brasyn_dist.common.processes import available_processors
from brasyn_dist.config import RuntimeConfig
from brasyn_dist.distributed.timing import PhaseClock, timed_all_reduce
from brasyn_dist.distributed.trainable import DdpTrainable, Trainable
from brasyn_dist.errors import BrasynError, ConfigError

if TYPE_CHECKING:
    from brasyn_dist.distributed.zero import Zero

LAUNCHERS = re.compile(
    r"(ACCELERATE|FSDP|PARALLELISM_CONFIG|OMPI_COMM_WORLD|PMI|MV2_COMM_WORLD|MPI_LOCAL)_|"
    r"(LOCAL_)?RANK$|(LOCAL_)?WORLD_SIZE$|MASTER_(ADDR|PORT)$"
)
"""Variables that tell a process of its peers."""
COMMUNICATION = {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
"""Defaults of environment variables for GPUs: report problems, and end a rank whose peers have ended."""


class ProcessGroup(ABC):
    """This process and the others of its run. The base class is a group of one process."""

    def __init__(self, runtime: RuntimeConfig, device: torch.device, clock: PhaseClock) -> None:
        self.runtime = runtime
        self.device = device
        self.clock = clock
        self.rank, self.world = 0, 1
        self._control: Any = None
        """Process group of the agreements on the host."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds only a part of the weights (ZeRO 3).

        Modules then gather their weights when they are called.
        """
        return False

    # ---- networks

    @abstractmethod
    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module) -> Trainable:
        """Make `module`, which is on the device, trainable on all ranks.

        `state` becomes `Trainable.module`.
        """

    @abstractmethod
    def autocast(self) -> AbstractContextManager:
        """Context in which operations run in the configured precision."""

    # ---- agreements between ranks, on the host

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        values = torch.tensor(flags, dtype=torch.int32)
        if self.world > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(v) for v in values]

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a host tensor over the ranks. The order of summation depends on the world size only."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values, group=self._control)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Objects of all ranks, in rank order, on every rank."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Result of `work` on rank 0, on every rank.

        Its BrasynError or OSError is raised on every rank, since the others would wait for a failed rank.
        """
        result, error = None, None
        if self.is_main:
            try:
                result = work()
            except (BrasynError, OSError) as problem:
                error = problem
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result

    def barrier(self) -> None:
        """Wait until all ranks have arrived here."""
        self.any(False)

    def close(self) -> None:  # noqa: B027
        """End the use of the group."""


class Distributed(ProcessGroup):
    """The process group that the launcher started, through Accelerate.

    Args:
        runtime: Options, resolved for `zero` (`resolve_runtime`).
        zero: See `zero_of_launch`.

    Raises:
        ConfigError: The machine does not support `runtime`.
    """

    def __init__(self, runtime: RuntimeConfig, zero: "Zero | None" = None) -> None:
        # The import of accelerate takes seconds. Checks of the configuration and `--help` do not need it.
        from accelerate import Accelerator
        from accelerate.utils import (
            DDPCommunicationHookType,
            DistributedDataParallelKwargs,
            InitProcessGroupKwargs,
        )

        cuda = torch.cuda.is_available()
        if runtime.precision == "fp16" and not cuda:
            raise ConfigError("runtime.precision=fp16 needs a CUDA device; use bf16 or no")
        bf16_exchange = runtime.gradient_exchange == "bf16"
        if bf16_exchange and not cuda:
            raise ConfigError(
                "runtime.gradient_exchange=bf16 needs NCCL, and NCCL needs CUDA devices; use fp32"
            )
        if cuda:
            for name, value in COMMUNICATION.items():
                os.environ.setdefault(name, value)
        check_environment(runtime.precision)
        if cuda:
            check_devices(torch.cuda.device_count())
        self._zero = zero
        hook = DDPCommunicationHookType.BF16 if bf16_exchange else DDPCommunicationHookType.NO
        try:
            self.accelerator = Accelerator(
                cpu=not cuda,
                mixed_precision=runtime.precision,
                step_scheduler_with_optimizer=False,
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=timedelta(minutes=runtime.collective_timeout_minutes)),
                    DistributedDataParallelKwargs(
                        gradient_as_bucket_view=runtime.gradient_as_bucket_view,
                        static_graph=runtime.static_graph,
                        comm_hook=hook,
                    ),
                ],
            )
        except (ValueError, ImportError, RuntimeError) as error:
            found = [name for name in sorted(os.environ) if LAUNCHERS.match(name)]
            raise ConfigError(
                f"the processes cannot be connected: {str(error).strip().splitlines()[0]}; start them by "
                f"accelerate launch, torchrun or slurm/train.sbatch, or unset {', '.join(found) or 'nothing'}"
            ) from error
        device = self.accelerator.device
        super().__init__(runtime, device, PhaseClock(device))
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        expected = number(os.environ, "WORLD_SIZE", 1)
        if self.world != expected:
            raise ConfigError(
                f"the launcher started {expected} processes but this one sees {self.world}; on CPU use "
                "`accelerate launch --multi_gpu --num_processes N` with ACCELERATE_USE_CPU=true, or "
                "`torchrun`"
            )
        self._control = self._host_group()
        check_nodes(self.gather((socket.gethostname(), number(os.environ, "LOCAL_WORLD_SIZE", self.world))))
        self._set_device_options()

    @property
    def shards_weights(self) -> bool:
        """Whether each rank holds only a part of the weights (ZeRO stage 3)."""
        return self._zero is not None and self._zero.stage == 3

    @property
    def strategy(self) -> str:
        """How networks are distributed over the ranks, for the start table."""
        return "DistributedDataParallel" if self._zero is None else f"DeepSpeed ZeRO {self._zero.stage}"

    @property
    def communication(self) -> str:
        """Backend, timeout and the related environment variables, for the start table."""
        if self.world == 1:
            return "none, one process"
        prefixes = ("NCCL_", "TORCH_NCCL_", "GLOO_", "TP_SOCKET_IFNAME")
        settings = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(prefixes)]
        minutes = self.runtime.collective_timeout_minutes
        return ", ".join([dist.get_backend(), f"timeout {minutes:g} min", *settings])

    def _host_group(self) -> Any:
        """A gloo group: agreements on the host neither wait for the GPU nor are ordered with its work."""
        if self.world == 1:
            return None
        if dist.get_backend() == "gloo":
            return dist.group.WORLD
        timeout = timedelta(minutes=self.runtime.collective_timeout_minutes)
        return dist.new_group(backend="gloo", timeout=timeout)

    def _set_device_options(self) -> None:
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.runtime.tf32
            torch.backends.cudnn.allow_tf32 = self.runtime.tf32
            torch.backends.cudnn.benchmark = self.runtime.cudnn_benchmark
        if self.device.type != "cuda" or self.runtime.threads:
            local_world = number(os.environ, "LOCAL_WORLD_SIZE", 1)
            torch.set_num_threads(self.runtime.threads or max(1, available_processors() // local_world))

    def check(self, global_batch_size: int, micro_batch_size: int | None, averaged: bool) -> None:
        """Raise ConfigError if the networks cannot be distributed over the ranks with these options."""
        if self._zero is not None:
            self._zero.check(self.world, global_batch_size, micro_batch_size, averaged)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module) -> Trainable:
        """See `ProcessGroup.prepare`: DeepSpeed if it is configured, otherwise DDP."""
        if self._zero is not None:
            return self._zero.prepare(module, optimizer, state, self.device)
        wrapped = self.accelerator.prepare_model(module)
        # A network can have one communication hook. With bf16 exchange it is that of accelerate.
        timed = self.runtime.time_communication and self.runtime.gradient_exchange == "fp32"
        if timed and isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.register_comm_hook(self.clock, timed_all_reduce)
        return DdpTrainable(state, wrapped, optimizer, self.accelerator, self.clock)

    def autocast(self) -> AbstractContextManager:
        """Context in which operations run in the configured precision."""
        return self.accelerator.autocast()

    @property
    def scaler_state(self) -> dict[str, Any]:
        """State of fp16's loss scaling; empty without it."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    @scaler_state.setter
    def scaler_state(self, state: dict[str, Any]) -> None:
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

    def close(self) -> None:
        """Leave the process group."""
        self.accelerator.end_training()


def check_devices(devices: int) -> None:
    """Raise ConfigError if the launcher started more processes on this node than it has GPUs."""
    processes = number(os.environ, "LOCAL_WORLD_SIZE", 1)
    if number(os.environ, "LOCAL_RANK", 0) >= devices:
        raise ConfigError(
            f"{socket.gethostname()} has {devices} GPUs for {processes} processes; start as many processes "
            "on each node as the node with the fewest GPUs has (--nproc_per_node, --num_processes, "
            "PROCESSES_PER_NODE), or take nodes of one kind"
        )


def check_nodes(processes: Sequence[tuple[str, int]]) -> None:
    """Refuse nodes with different numbers of processes, as nodes with different numbers of GPUs get them.

    Args:
        processes: For each rank, the host and its number of processes.

    Raises:
        ConfigError: Names the nodes.
    """
    if len({count for _, count in processes}) > 1:
        nodes = ", ".join(f"{host} {count}" for host, count in dict.fromkeys(processes))
        raise ConfigError(
            f"the nodes have different numbers of processes ({nodes}); start the same number on each "
            "(--nproc_per_node, --gpus-per-node, PROCESSES_PER_NODE)"
        )


def zero_of_launch(runtime: RuntimeConfig) -> "Zero | None":
    """DeepSpeed options of the launch configuration, or None. deepspeed is imported only if needed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    from brasyn_dist.distributed.zero import Zero

    return Zero(runtime)


def resolve_runtime(runtime: RuntimeConfig, zero: "Zero | None") -> RuntimeConfig:
    """The options in effect.

    Networks under ZeRO 3 cannot be compiled, so compilation is off if it was not set.
    """
    return replace(runtime, compile="off") if zero is not None and zero.stage == 3 else runtime


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error of a collective means that another process has ended, hangs or cannot be reached."""
    # gloo raises plain RuntimeErrors that begin with a location in its source.
    signs = (
        "gloo/transport", "caused pair closure", "Connection closed by peer", "Connection reset by peer",
        "Broken pipe", "ProcessGroup",
    )  # fmt: skip
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
