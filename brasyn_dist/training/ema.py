"""Exponential moving average of a network's weights: the network that is validated and exported."""

import copy

import torch
from torch import nn


def average_of(network: nn.Module) -> nn.Module:
    """A copy that starts equal to `network`, in evaluation mode and without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network, for all parameters."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
