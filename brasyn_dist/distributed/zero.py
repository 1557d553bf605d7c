"""DeepSpeed's ZeRO for several networks in one process.

    accelerate launch --config_file launch/deepspeed_zero2.yaml ...
      --> Zero: stage and checks of the options             one engine for each network
            .prepare(network) --> ZeroTrainable             stage 1: Adam's moments are sharded over the ranks
                                                                  2: and the gradients   3: and the weights

accelerate starts the processes, reads the launch configuration and sets up the process group. The engines are
created by DeepSpeed itself, since accelerate supports one engine per Accelerator, steps inside `backward` and
needs transformers.

All state is float32 (bf16 is autocast, as without DeepSpeed), and `state_dict` and `adam_state` are complete
at every stage. A run can therefore change between DistributedDataParallel, stages and numbers of processes.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from brasyn_dist.config import RuntimeConfig
from brasyn_dist.data.loading.sampler import rank_rows
from brasyn_dist.distributed.trainable import Trainable, frozen
from brasyn_dist.errors import ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET_ELEMENTS = 25_000_000
"""Buckets of 100 MB for gradients and weights. The default of DeepSpeed (2 GB) exceeds the memory that ZeRO
saves here."""
WITHOUT = "launch/one_node.yaml (DistributedDataParallel)"


class Zero:
    """DeepSpeed options of the launch configuration.

    Raises:
        ConfigError: They cannot be used. Nothing has been set up at that point.
    """

    def __init__(self, runtime: RuntimeConfig) -> None:
        if find_spec("deepspeed") is None:
            raise ConfigError(
                "the launch configuration asks for DeepSpeed, which is not installed: pip install "
                "'brasyn_dist[deepspeed]', or use " + WITHOUT
            )
        if "LOCAL_RANK" not in os.environ:
            raise ConfigError(
                "ACCELERATE_USE_DEEPSPEED is set without a launcher: use accelerate launch or torchrun"
            )
        if not torch.cuda.is_available():
            prepare_for_cpu()
        from accelerate.utils import DeepSpeedPlugin

        try:
            plugin = DeepSpeedPlugin()
        except ValueError as error:
            raise ConfigError(f"launch configuration: {error}") from None
        # Otherwise accelerate would take control of one engine.
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
        self.stage = int(plugin.zero_stage)
        self._given: dict[str, Any] = plugin.deepspeed_config
        self._runtime = runtime
        self._refuse_options()
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed uses deprecated names of torch 2.13, with one warning per call.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)

    def _refuse_options(self) -> None:
        runtime, given = self._runtime, self._given
        zero = given.get("zero_optimization", {})
        if self.stage not in (1, 2, 3):
            raise ConfigError(f"zero_stage: {self.stage} shards nothing: use 1, 2 or 3, or {WITHOUT}")
        if runtime.precision == "fp16":
            raise ConfigError(
                "runtime.precision=fp16 under DeepSpeed would need a loss scale for each engine: use bf16, "
                "or fp16 with " + WITHOUT
            )
        if self.stage == 3 and runtime.compile not in (None, "off"):
            raise ConfigError(
                f"runtime.compile={runtime.compile} with ZeRO 3: its gathering of weights inside the "
                "networks cannot be compiled; use runtime.compile=off, or launch/deepspeed_zero2.yaml"
            )
        if self.stage == 3 and runtime.encoder_execution == "separate":
            raise ConfigError(
                "runtime.encoder_execution=separate with ZeRO 3: the encoders are called with parts of their "
                "weights, which are not gathered; remove the option, or use launch/deepspeed_zero2.yaml"
            )
        for section in ("offload_optimizer", "offload_param"):
            if ((zero.get(section) or {}).get("device") or "none") != "none":
                raise ConfigError(
                    f"{section} in the launch configuration: checkpoints are read from the device, where "
                    "these networks need little memory; set its device to none"
                )
        decided = {
            "optimizer": "optimizer.*", "scheduler": "optimizer.warmup_steps",
            "gradient_clipping": "optimizer.clip_norm",
            "train_batch_size": "training.global_batch_size",
            "train_micro_batch_size_per_gpu": "training.micro_batch_size",
            "gradient_accumulation_steps": "training.micro_batch_size",
            "torch_autocast": "runtime.precision", "fp16": "runtime.precision", "bf16": "runtime.precision",
        }  # fmt: skip
        for key, option in decided.items():
            # accelerate sets gradient_accumulation_steps to 1 itself.
            if not left_open(given.get(key)) and (key, given[key]) != ("gradient_accumulation_steps", 1):
                raise ConfigError(
                    f"{key} in the launch configuration: {option} sets it; remove it there, or set it to auto"
                )

    def check(self, world: int, global_batch_size: int, micro_batch_size: int | None, averaged: bool) -> None:
        """Raise ConfigError if ranks would wait for each other for ever, or no rank has complete weights."""
        if self.stage == 3 and not averaged:
            raise ConfigError(
                "training.ema_decay=0 with ZeRO 3: validation and export need complete weights, and only "
                "the average is complete "
                "on a rank; use training.ema_decay above 0, or launch/deepspeed_zero2.yaml"
            )
        if self.stage == 1 or micro_batch_size is None:
            return
        rows = [rank_rows(global_batch_size, r, world, self._runtime.rank_shares) for r in range(world)]
        counts = [-(-(r.stop - r.start) // micro_batch_size) for r in rows]
        fewest, most = min(counts), max(counts)
        if fewest != most:
            raise ConfigError(
                f"training.global_batch_size={global_batch_size} and micro_batch_size={micro_batch_size} "
                f"give {world} processes {fewest} or {most} micro-batches, but ZeRO {self.stage} exchanges "
                f"gradients after each: choose a multiple of {world} for the global batch (and equal "
                "runtime.rank_shares), another micro-batch, or launch/deepspeed_zero1.yaml"
            )

    def engine_options(self) -> dict[str, Any]:
        """Configuration of an engine: the launch configuration with the options of the run."""
        given = {k: v for k, v in self._given.items() if not left_open(v)}
        zero = {k: v for k, v in given.pop("zero_optimization").items() if v != "auto"}
        buckets = {"reduce_bucket_size": BUCKET_ELEMENTS, "allgather_bucket_size": BUCKET_ELEMENTS}
        return {
            **given,
            "zero_optimization": {**buckets, **zero},
            # The training step cuts micro-batches, sets their boundaries (accumulate) and divides by the
            # global batch.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**60,
        }

    def prepare(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, state: nn.Module, device: torch.device
    ) -> Trainable:
        """An engine around `module`, which is on `device`.

        Names and order of the parameters do not change.
        """
        import deepspeed

        size = sum(p.numel() for p in state.parameters())
        if self._runtime.precision == "bf16":
            run_in_autocast(module, device)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=self.engine_options())
        return ZeroTrainable(state, engine, optimizer, self.stage, size)


class ZeroTrainable:
    """A network in a DeepSpeed engine (`wrapped`). See `Trainable`.

    `module` can be called while frozen at every stage: at stage 3 its layers gather their weights.
    """

    def __init__(
        self,
        module: nn.Module,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        stage: int,
        parameter_count: int,
    ) -> None:
        self.module, self.wrapped, self.optimizer = module, engine, optimizer
        self.parameter_count = parameter_count
        self._engine, self._zero_optimizer, self._stage = engine, engine.optimizer, stage

    def frozen(self) -> AbstractContextManager[nn.Module]:
        """See `Trainable.frozen`."""
        return frozen(self.module)

    def accumulate(self, last: bool) -> AbstractContextManager:
        """Context of one backward pass; gradients are complete after the `last`."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Backward pass of a scaled loss."""
        self._engine.backward(loss)

    def clip_and_step(self, max_norm: float, rate: float) -> Tensor:
        """Clip the gradients and update the weights; the norm before clipping."""
        self._zero_optimizer.clip_grad = max_norm
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._zero_optimizer.device)

    # ---- whole state

    def gathered(self, changed_by: int | None = None) -> AbstractContextManager:
        """Context in which the parameters of `module` are complete.

        Rank `changed_by` may change them for all ranks.
        """
        if self._stage < 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters(list(self.module.parameters()), modifier_rank=changed_by)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights by name, gathered from the ranks."""
        with self.gathered():
            weights = self.module.state_dict()
            # The gathered weights are released at the end of the context.
            return weights if self._stage < 3 else {k: v.cpu().clone() for k, v in weights.items()}

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Set the weights; every rank keeps its part."""
        with self.gathered(changed_by=0):
            self.module.load_state_dict(weights)
        # ZeRO updates a separate float32 copy.
        self._zero_optimizer.refresh_fp32_params()

    def adam_state(self) -> dict[str, dict[str, Any]]:
        """State of Adam by the parameter's name, gathered from the ranks."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self.optimizer.state:
            return {}
        step = self.optimizer.state[self._partitions()[0]]["step"]
        return {
            name: {"step": step.clone(), **{m: safe_get_full_optimizer_state(p, m).cpu() for m in MOMENTS}}
            for name, p in self.module.named_parameters()
        }

    def load_adam_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Set the state of Adam from `adam_state`; every rank keeps its part."""
        parameters = dict(self.module.named_parameters())
        if not any(state.values()):
            return
        step = next(iter(state.values()))["step"]
        on_device = any(g.get("fused") or g.get("capturable") for g in self.optimizer.param_groups)
        for partition in self._partitions():
            self.optimizer.state[partition] = {
                "step": step.to(partition.device if on_device else "cpu", torch.float32).clone(),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
        if self._stage < 3:
            # Maps each parameter to its part of the moments. ZeRO does this in its first step, which is over
            # after a resume.
            self._zero_optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in parameters.items():
            for moment in MOMENTS:
                set_moment(parameter, state[name][moment], moment, self._stage)

    def _partitions(self) -> list[Tensor]:
        """This rank's part of the weights, flat, as Adam updates it."""
        if self._stage == 3:
            return list(self._zero_optimizer.fp32_partitioned_groups_flat)
        return list(self._zero_optimizer.single_partition_of_fp32_groups)


def set_moment(parameter: nn.Parameter, value: Tensor, moment: str, stage: int) -> None:
    """Write this rank's part of the complete `value` into the optimiser."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if stage < 3:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)
        return
    # The setter of stage 3 for complete values fails if the parameter's size is no multiple of the number of
    # ranks.
    part: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    rank, size = torch.distributed.get_rank(), part.numel()
    mine = value.flatten()[rank * size : (rank + 1) * size].to(part.device)
    safe_set_local_optimizer_state(parameter, nn.functional.pad(mine, (0, size - mine.numel())), moment)


def left_open(value: Any) -> bool:
    """Whether a value of the DeepSpeed configuration is not set."""
    return value in (None, "auto", {}) or (
        isinstance(value, dict) and value.get("enabled") in (False, "auto")
    )


def prepare_for_cpu() -> None:
    """Select the CPU backend of DeepSpeed without its shared-memory operator, before the import of DeepSpeed.

    The build of that operator takes two minutes without output, and a killed build leaves a lock that blocks
    later runs.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def run_in_autocast(module: nn.Module, device: torch.device) -> None:
    """Run `module.forward` in bf16 autocast with float32 outputs, as accelerate does without DeepSpeed.

    The autocast is inside `forward`, because an engine switches off the autocast around its call.
    """
    from accelerate.utils import convert_outputs_to_fp32

    forward = torch.autocast(device.type, torch.bfloat16)(module.forward)
    module.forward = convert_outputs_to_fp32(forward)
