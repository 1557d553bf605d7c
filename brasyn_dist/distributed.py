"""Processes, devices, mixed precision: the only module that imports accelerate or deepspeed.

    Distributed(runtime)            one per process; works under `accelerate launch`, `torchrun` and plain `python -m`
      .prepare(network, optimiser)  DistributedDataParallel around a network, loss scaling around its optimiser
      .backward / .clip_and_step    gradient of one micro-batch / the update, right under loss scaling
      .any / .sum / .gather         small agreements between ranks, over gloo on the host

The trainer decides what is computed; nothing here knows what a generator is.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from brasyn_dist.config import RuntimeConfig
from brasyn_dist.errors import ConfigError
from brasyn_dist.phases import PhaseClock, timed_all_reduce


@dataclass
class Trainable:
    """A network as three things: `module` (bare, for state and frozen use), `wrapped` (call it to train), `optimizer`."""

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    prepared_optimizer: Any

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare module with `requires_grad` off: no stray gradients, no all-reduce, gradients still pass through."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)


class Distributed:
    """This process among the others. Raises ConfigError where the machine cannot do what the options ask."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        # accelerate costs seconds of imports, which `--help` and errors in the configuration need not wait for.
        from accelerate import Accelerator
        from accelerate.utils import (
            DistributedDataParallelKwargs,
            InitProcessGroupKwargs,
            TorchDynamoPlugin,
        )

        cuda = torch.cuda.is_available()
        if runtime.precision == "fp16" and not cuda:
            raise ConfigError("runtime.precision=fp16 needs a CUDA device; use bf16 or no")
        self.runtime = runtime
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision=runtime.precision,
            step_scheduler_with_optimizer=False,
            # We compile modules ourselves: the launcher's default must not wrap them a second time.
            dynamo_plugin=TorchDynamoPlugin(backend="no"),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(minutes=runtime.collective_timeout_minutes)),
                DistributedDataParallelKwargs(gradient_as_bucket_view=runtime.gradient_as_bucket_view),
            ],
        )
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world != expected:
            raise ConfigError(
                f"the launcher started {expected} processes but this one sees {self.world}; on CPU use "
                "`accelerate launch --multi_gpu --num_processes N` with ACCELERATE_USE_CPU=true, or `torchrun`"
            )
        self._control = self._host_group()
        self.clock = PhaseClock(self.device)
        self._set_device_options()

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def local_rank(self) -> int:
        return self.accelerator.local_process_index

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def local_world(self) -> int:
        """Processes on this node."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def _host_group(self) -> Any:
        """A gloo group for host-side agreements: they must not wait for, nor be ordered with, work on the GPU."""
        if self.world == 1:
            return None
        from torch import distributed as dist

        if dist.get_backend() == "gloo":
            return dist.group.WORLD
        return dist.new_group(
            backend="gloo", timeout=timedelta(minutes=self.runtime.collective_timeout_minutes)
        )

    def _set_device_options(self) -> None:
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.runtime.tf32
            torch.backends.cudnn.allow_tf32 = self.runtime.tf32
            torch.backends.cudnn.benchmark = self.runtime.cudnn_benchmark
        else:
            torch.set_num_threads(self.runtime.threads or max(1, (os.cpu_count() or 1) // self.local_world))

    # ---- networks

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module) -> Trainable:
        """Move `module` to the device and make it trainable on all ranks; `state` is what `Trainable.module` names."""
        wrapped = self.accelerator.prepare_model(module)
        if self.runtime.time_communication and isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.register_comm_hook(self.clock, timed_all_reduce)
        return Trainable(
            state,
            wrapped,
            optimizer,
            self.accelerator.prepare_optimizer(optimizer),
        )

    def accumulate(self, network: Trainable, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch; ranks exchange gradients in the `last` one only."""
        if last or self.world == 1:
            return nullcontext()
        return self.accelerator.no_sync(network.wrapped)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        self.clock.exchanged()

    def clip_and_step(self, network: Trainable, max_norm: float, rate: float) -> Tensor:
        """Unscale, clip to `max_norm` (0: not), step at `rate`, clear gradients. Returns the norm before clipping, ()."""
        self.accelerator.unscale_gradients(network.prepared_optimizer)
        norm = torch.nn.utils.clip_grad_norm_(network.module.parameters(), max_norm or float("inf"))
        for group in network.optimizer.param_groups:
            group["lr"] = rate
        network.prepared_optimizer.step()
        network.prepared_optimizer.zero_grad()
        return norm

    def autocast(self) -> AbstractContextManager:
        return self.accelerator.autocast()

    @property
    def scaler_state(self) -> dict[str, Any]:
        """State of fp16's loss scaling; empty without."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    @scaler_state.setter
    def scaler_state(self, state: dict[str, Any]) -> None:
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

    # ---- agreements between ranks, on the host

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        values = torch.tensor(flags, dtype=torch.int32)
        if self.world > 1:
            from torch import distributed as dist

            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(v) for v in values]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks of a host tensor (float64 for metrics), in an order that depends on the world size only."""
        if self.world > 1:
            from torch import distributed as dist

            values = values.clone()
            dist.all_reduce(values, group=self._control)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Objects of all ranks, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        from torch import distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object."""
        if self.world == 1:
            return value
        from torch import distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def main_first(self, result: Any = None, error: BaseException | None = None) -> Any:
        """Rank 0's result everywhere, or its error raised everywhere: a rank that fails alone would hang the others."""
        result, message = self.broadcast((result, error))
        if message is not None:
            raise message
        return result

    def barrier(self) -> None:
        self.any(False)

    def close(self) -> None:
        self.accelerator.end_training()


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error of a collective says that another process is gone, stuck or cannot be reached."""
    from torch import distributed as dist

    # gloo raises plain RuntimeErrors, which begin with the place in its source.
    signs = (
        "gloo/transport",
        "caused pair closure",
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "ProcessGroup",
    )
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
