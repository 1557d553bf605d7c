"""How the networks are executed where the configuration leaves it open: by device, as measured (docs/explanation/performance.md)."""

from typing import Any

import torch
from torch import nn

from brasyn_dist.config import RunConfig
from brasyn_dist.distributed.process_group import Distributed


def memory_format(config: RunConfig, device: torch.device) -> torch.memory_format:
    """channels-last where it pays: on GPUs; on CPUs it slows the convolutions' backward down."""
    wanted = config.runtime.channels_last
    use = device.type == "cuda" if wanted is None else wanted
    return torch.channels_last if use else torch.contiguous_format


def compile_mode(config: RunConfig, device: torch.device) -> str:
    """torch.compile where it pays: on GPUs; on CPUs eager training is faster."""
    return config.runtime.compile or ("default" if device.type == "cuda" else "off")


def place(config: RunConfig, distributed: Distributed, network: nn.Module) -> None:
    """Move a network to this process' device, in the memory format chosen."""
    device = distributed.device
    network.to(device, memory_format=memory_format(config, device))  # type: ignore[call-overload]


def compile_in_place(config: RunConfig, device: torch.device, *networks: nn.Module) -> None:
    """`Module.compile` keeps parameter names, hence checkpoints, as they are. A graph break is an error, not a slow run."""
    mode = compile_mode(config, device)
    options: dict[str, Any] = {"mode": mode} if mode == "max-autotune" else {}
    if mode == "aot_eager":
        options["backend"] = mode
    if mode != "off":
        for network in networks:
            network.compile(dynamic=False, fullgraph=True, **options)
