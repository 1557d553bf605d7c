"""How networks are executed: device, memory format, torch.compile, optimiser.

Options that the configuration leaves open are chosen by device (docs/explanation/performance.md).
"""

from typing import Any

import torch
from torch import nn

from brasyn_dist.config import PatchRunConfig, RunConfig
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.pretrained import PretrainedNetwork, load_weights
from brasyn_dist.training.schedule import scaled_rate
from brasyn_dist.training.state import TrainState, average_of


def memory_format(config: RunConfig, device: torch.device) -> torch.memory_format:
    """Default: channels-last on GPUs. On CPUs it slows the backward pass of 2-D convolutions."""
    wanted = config.runtime.channels_last
    use = device.type == "cuda" if wanted is None else wanted
    last = torch.channels_last_3d if isinstance(config, PatchRunConfig) else torch.channels_last
    return last if use else torch.contiguous_format


def compile_mode(config: RunConfig, device: torch.device) -> str:
    """Default: torch.compile on GPUs. On CPUs eager training is faster."""
    return config.runtime.compile or ("default" if device.type == "cuda" else "off")


def move_to_device(config: RunConfig, device: torch.device, network: nn.Module) -> None:
    """Move a network to the device, in the chosen memory format."""
    network.to(device, memory_format=memory_format(config, device))  # type: ignore[call-overload]


def compile_in_place(config: RunConfig, device: torch.device, *networks: nn.Module) -> None:
    """Compile each network as one graph.

    `Module.compile` keeps parameter names and so checkpoints. A graph break is an error.
    """
    mode = compile_mode(config, device)
    options: dict[str, Any] = {"mode": mode} if mode == "max-autotune" else {}
    if mode == "aot_eager":
        options["backend"] = mode
    if mode != "off":
        for network in networks:
            network.compile(dynamic=False, fullgraph=True, **options)


def adam(config: RunConfig, network: nn.Module, rate_ratio: float = 1.0) -> torch.optim.Adam:
    """Adam or AdamW at the peak learning rate times `rate_ratio`.

    Every update sets the rate of its step.
    """
    options = config.optimizer
    rate = scaled_rate(options, config.training.global_batch_size) * rate_ratio
    fused = next(network.parameters()).device.type == "cuda"
    # Adam adds the L2 penalty to the gradient, AdamW shrinks the weights.
    kind = torch.optim.Adam if options.weight_decay_form == "l2" else torch.optim.AdamW
    return kind(network.parameters(), rate, options.betas, options.eps, options.weight_decay, fused=fused)


def state_of_one(config: RunConfig, group: ProcessGroup, network: PretrainedNetwork) -> TrainState:
    """State at step 0 of a run that trains one network; its weights may come from `checkpoint.init_from`."""
    if config.checkpoint.init_from is not None:
        load_weights(network, config.checkpoint.init_from)
    set_recompute(network, config.runtime.recompute)
    move_to_device(config, group.device, network)
    average = average_of(network) if config.training.ema_decay > 0 else None
    compile_in_place(config, group.device, network)
    return TrainState({network.kind: group.prepare(network, adam(config, network), network)}, average)
