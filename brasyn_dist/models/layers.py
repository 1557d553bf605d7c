"""Building blocks of the generator, each holding one network or several of the same shape side by side.

The four modality encoders are such a set of networks: equal shapes, separate weights. Their parameters are stacked along
the output channels, which is how a grouped convolution stores them, and a layer takes its input in *parts*:

    one part      (R, copies * C, H, W)         one grouped convolution computes all networks
    n parts       n times (R_i, C, H, W)        n dense convolutions, each network on rows of its own

Parameters, names and results are the same; which is faster depends on the device. A layer with one copy is an ordinary
layer that takes and returns one part.

No layer has dropout. The newer published blocks have none either, and its random numbers would have to be functions of
(seed, step, sample, layer) for a resumed run to repeat them and for a batch to be the same however it is split.
"""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[Tensor, ...]


def split_parameter(parameter: Tensor, parts: int) -> Parts:
    """Equal parts along dimension 0. `unbind`, unlike indexing, has one backward for all parts: no zero-filled gradients."""
    return (parameter,) if parts == 1 else parameter.unflatten(0, (parts, -1)).unbind()


class Convolution(nn.Conv2d):
    """Square convolution of `copies` networks, each from `inputs` to `outputs` channels."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, copies: int = 1
    ) -> None:
        super().__init__(copies * inputs, copies * outputs, kernel, stride, padding, groups=copies)

    def forward(self, parts: Parts) -> Parts:  # type: ignore[override]
        count = len(parts)
        assert self.bias is not None
        weights, biases = split_parameter(self.weight, count), split_parameter(self.bias, count)
        return tuple(
            F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups // count)
            for x, weight, bias in zip(parts, weights, biases)
        )


class Normalisation(nn.GroupNorm):
    """GroupNorm of `copies` networks, each with its own `groups`: statistics never mix samples or networks."""

    def __init__(self, groups: int, channels: int, copies: int = 1) -> None:
        super().__init__(copies * groups, copies * channels)

    def forward(self, parts: Parts) -> Parts:  # type: ignore[override]
        count = len(parts)
        weights, biases = split_parameter(self.weight, count), split_parameter(self.bias, count)
        return tuple(
            F.group_norm(x, self.num_groups // count, weight, bias, self.eps)
            for x, weight, bias in zip(parts, weights, biases)
        )


class ResidualBlock(nn.Module):
    """x + (GroupNorm, SiLU, 3x3 convolution) `convolutions` times; a 1x1 shortcut where the channel count changes."""

    def __init__(
        self, inputs: int, outputs: int, groups: int, convolutions: int = 1, copies: int = 1
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * convolutions
        self.norms = nn.ModuleList(Normalisation(groups, width, copies) for width in widths[:-1])
        self.convolutions = nn.ModuleList(
            Convolution(a, b, 3, padding=1, copies=copies) for a, b in itertools.pairwise(widths)
        )
        self.shortcut = Convolution(inputs, outputs, 1, copies=copies) if inputs != outputs else None

    def forward(self, parts: Parts) -> Parts:
        hidden = parts
        for norm, convolution in zip(self.norms, self.convolutions):
            hidden = convolution(tuple(F.silu(x) for x in norm(hidden)))
        shortcut = parts if self.shortcut is None else self.shortcut(parts)
        return tuple(x + y for x, y in zip(shortcut, hidden))


class Downsampling(nn.Module):
    """3x3 convolution with stride 2 after zero-padding one pixel right and bottom: halves both sides."""

    def __init__(self, channels: int, copies: int = 1) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 3, stride=2, copies=copies)

    def forward(self, parts: Parts) -> Parts:
        return self.convolution(tuple(F.pad(x, (0, 1, 0, 1)) for x in parts))


class Encoder(nn.Module):
    """3x3 stem, then one residual block a stage with a halving of the image between stages (method, section 3).

    Stage i has width `widths[i]` at 1 / 2^i of the input size.
    """

    def __init__(
        self, inputs: int, widths: tuple[int, ...], groups: int, convolutions: int = 1, copies: int = 1
    ) -> None:
        super().__init__()
        self.stem = Convolution(inputs, widths[0], 3, padding=1, copies=copies)
        self.blocks = nn.ModuleList(
            ResidualBlock(a, b, groups, convolutions, copies) for a, b in zip((widths[0], *widths), widths)
        )
        self.downsamplings = nn.ModuleList(Downsampling(width, copies) for width in widths[:-1])

    def forward(self, parts: Parts) -> list[Parts]:
        """Outputs of stages 1 to the last. The decoder has no use for stage 0's, the full-size one."""
        features = [self.blocks[0](self.stem(parts))]
        for downsampling, block in zip(self.downsamplings, self.blocks[1:]):
            features.append(block(downsampling(features[-1])))
        return features[1:]


class ChannelGate(nn.Module):
    """Channel attention: sigmoid(1x1 convolution(SiLU(1x1 convolution(mean over pixels)))), one value a channel."""

    def __init__(self, channels: int, copies: int = 1) -> None:
        super().__init__()
        self.squeeze = Convolution(channels, channels, 1, copies=copies)
        self.excite = Convolution(channels, channels, 1, copies=copies)

    def forward(self, parts: Parts) -> Parts:
        """Parts (R, C, H, W) to parts (R, C, 1, 1) in (0, 1)."""
        hidden = self.squeeze(tuple(x.mean((2, 3), keepdim=True) for x in parts))
        return tuple(torch.sigmoid(x) for x in self.excite(tuple(F.silu(x) for x in hidden)))


class Upsampling(nn.Module):
    """Nearest-neighbour doubling of both sides, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 3, padding=1)

    def forward(self, parts: Parts) -> Parts:
        return self.convolution(tuple(F.interpolate(x, scale_factor=2, mode="nearest") for x in parts))


@contextmanager
def seeded_initialisation(seed: int, network: str) -> Iterator[None]:
    """Initial weights drawn inside are a function of (seed, name of the network) and disturb no random state outside."""
    digest = hashlib.sha256(f"{network} {seed}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would seed the GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
        yield
