"""How networks are executed: device, memory format, torch.compile, optimiser.

Options that the configuration leaves open are chosen by device, as measured
(docs/explanation/performance.md).
"""

from typing import Any

import torch
from torch import nn

from brasyn_dist.config import RunConfig
from brasyn_dist.training.schedule import scaled_rate


def memory_format(config: RunConfig, device: torch.device) -> torch.memory_format:
    """Default: channels-last on GPUs. On CPUs it slows the backward pass of convolutions."""
    wanted = config.runtime.channels_last
    use = device.type == "cuda" if wanted is None else wanted
    return torch.channels_last if use else torch.contiguous_format


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
