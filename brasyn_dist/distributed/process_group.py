"""Processes, devices, mixed precision: with distributed_deepspeed.py the only module that imports accelerate or deepspeed.

    Distributed(runtime)            one per process; works under `accelerate launch`, `torchrun` and plain `python -m`
      .prepare(network, optimiser)  a Trainable: DistributedDataParallel, or a ZeRO engine of its own where the launch
                                    configuration asks for DeepSpeed (distributed_deepspeed.py)
      .backward / .clip_and_step    gradient of one micro-batch / the update, right under loss scaling
      .any / .sum / .gather         small agreements between ranks, over gloo on the host

The trainer decides what is computed; nothing here knows what a generator is.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from brasyn_dist.config import RuntimeConfig
from brasyn_dist.distributed.timing import PhaseClock, timed_all_reduce
from brasyn_dist.errors import ConfigError

if TYPE_CHECKING:
    from brasyn_dist.distributed.zero import Zero

COMMUNICATION = {"NCCL_DEBUG": "WARN", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
"""Environment of communication on GPUs, unless it is set already: say what is wrong, and end a rank whose peers are gone."""


@dataclass
class Trainable:
    """A network as three things: `module` (bare, for state and frozen use), `wrapped` (call it to train), `optimizer`.

    This one is replicated: every rank holds all of its weights and optimiser state.
    """

    module: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    prepared_optimizer: Any
    accelerator: Any

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare module with `requires_grad` off: no stray gradients, no all-reduce, gradients still pass through."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)

    # ---- one update

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch; ranks exchange gradients in the `last` one only."""
        if last or self.accelerator.num_processes == 1:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        """See `Distributed.clip_and_step`."""
        self.accelerator.unscale_gradients(self.prepared_optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        return norm

    # ---- whole state, the same whatever holds it; ranks call these together

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def gathered(self) -> AbstractContextManager:
        """Within it the parameters of `module` are whole, to be read."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """The bare module's weights in full, on rank 0."""
        return self.module.state_dict()

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`, on every rank. Raises RuntimeError where `weights` do not fit."""
        self.module.load_state_dict(weights)

    def adam_state(self) -> dict[str, dict[str, Any]]:
        """For each parameter's name Adam's `step` and full moments, on rank 0; empty before the first step."""
        return {
            name: dict(self.optimizer.state.get(parameter, {}))
            for name, parameter in self.module.named_parameters()
        }

    def load_adam_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Inverse of `adam_state`, on every rank. `step` stays where the optimiser wants it."""
        numbered = {
            number: state[name]
            for number, (name, _) in enumerate(self.module.named_parameters())
            if state.get(name)
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def processors() -> int:
    """Those that this process may use: a batch job is often given a part of its node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Distributed:
    """This process among the others. Raises ConfigError where the machine cannot do what the options ask."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        # accelerate costs seconds of imports, which `--help` and errors in the configuration need not wait for.
        from accelerate import Accelerator
        from accelerate.utils import (
            DDPCommunicationHookType,
            DistributedDataParallelKwargs,
            InitProcessGroupKwargs,
            TorchDynamoPlugin,
        )

        cuda = torch.cuda.is_available()
        if runtime.precision == "fp16" and not cuda:
            raise ConfigError("runtime.precision=fp16 needs a CUDA device; use bf16 or no")
        if runtime.gradient_exchange == "bf16" and not cuda:
            raise ConfigError("runtime.gradient_exchange=bf16 needs NCCL, hence CUDA devices; use fp32")
        self._zero = zero_of_launch(runtime)
        if self._zero is not None and self._zero.stage == 3:
            runtime = replace(runtime, compile="off")
        self.runtime = runtime
        """The options in force: what a way to distribute cannot do is switched off where the choice was left to us."""
        self._training: Trainable | None = None
        if cuda:
            for name, value in COMMUNICATION.items():
                os.environ.setdefault(name, value)
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision=runtime.precision,
            step_scheduler_with_optimizer=False,
            # We compile modules ourselves: the launcher's default must not wrap them a second time.
            dynamo_plugin=TorchDynamoPlugin(backend="no"),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(minutes=runtime.collective_timeout_minutes)),
                DistributedDataParallelKwargs(
                    gradient_as_bucket_view=runtime.gradient_as_bucket_view,
                    static_graph=runtime.static_graph,
                    comm_hook=DDPCommunicationHookType.BF16
                    if runtime.gradient_exchange == "bf16"
                    else DDPCommunicationHookType.NO,
                ),
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

    @property
    def communication(self) -> str:
        """Backend, timeout and what the environment says about them, for people."""
        if self.world == 1:
            return "none, one process"
        from torch import distributed as dist

        prefixes = ("NCCL_", "TORCH_NCCL_", "GLOO_", "TP_SOCKET_IFNAME")
        settings = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(prefixes)]
        return ", ".join(
            [dist.get_backend(), f"timeout {self.runtime.collective_timeout_minutes:g} min", *settings]
        )

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
        if self.device.type != "cuda" or self.runtime.threads:
            torch.set_num_threads(self.runtime.threads or max(1, processors() // self.local_world))

    # ---- networks

    @property
    def strategy(self) -> str:
        """How networks are shared among the ranks, for people."""
        return "DistributedDataParallel" if self._zero is None else f"DeepSpeed ZeRO {self._zero.stage}"

    def check(self, global_batch_size: int, micro_batch_size: int | None, averaged: bool) -> None:
        """Raise ConfigError where networks cannot be shared among the ranks in the way and with the options asked for."""
        if self._zero is not None:
            self._zero.check(self.world, global_batch_size, micro_batch_size, averaged)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module) -> Trainable:
        """Move `module` to the device and make it trainable on all ranks; `state` is what `Trainable.module` names."""
        if self._zero is not None:
            return self._zero.prepare(module, optimizer, state, self.device)
        wrapped = self.accelerator.prepare_model(module)
        # A network has one hook only: that of bf16 exchange is accelerate's.
        timed = self.runtime.time_communication and self.runtime.gradient_exchange == "fp32"
        if timed and isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.register_comm_hook(self.clock, timed_all_reduce)
        return Trainable(
            state,
            wrapped,
            optimizer,
            self.accelerator.prepare_optimizer(optimizer),
            self.accelerator,
        )

    def accumulate(self, network: Trainable, last: bool) -> AbstractContextManager:
        """Around forward and backward of one micro-batch; ranks exchange gradients in the `last` one only."""
        self._training = network
        return network.accumulate(last)

    def backward(self, loss: Tensor) -> None:
        """Of a loss of the network that `accumulate` named last."""
        assert self._training is not None, "backward belongs inside accumulate"
        self._training.backward(loss)
        self.clock.exchanged()

    def clip_and_step(self, network: Trainable, max_norm: float, rate: float) -> Tensor:
        """Unscale, clip to `max_norm` (0: not), step at `rate`, clear gradients. Returns the norm before clipping, ()."""
        return network.clip_and_step(max_norm, rate)

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


def zero_of_launch(runtime: RuntimeConfig) -> "Zero | None":
    """What the launch configuration asks of DeepSpeed; None: nothing. Its import costs seconds, so it waits until here."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    from brasyn_dist.distributed.zero import Zero

    return Zero(runtime)
