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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brasyn_dist.config import Recompute

Parts = tuple[Tensor, ...]
Network = Callable[[Tensor], Tensor]
"""One of a layer's networks: part in, part out."""


def split_parameter(parameter: Tensor, parts: int) -> Parts:
    """Equal parts along dimension 0. `unbind`, unlike indexing, has one backward for all parts: no zero-filled gradients."""
    return (parameter,) if parts == 1 else parameter.unflatten(0, (parts, -1)).unbind()


class Layer(nn.Module):
    """`networks(n)` gives the layer as n functions, one for each part; calling the layer applies them.

    With `recompute` a layer forgets what it makes on the way to a convolution, and the backward makes it again.
    """

    recompute: Recompute = "nothing"

    def networks(self, count: int) -> list[Network]:
        raise NotImplementedError

    def forward(self, parts: Parts) -> Parts:
        return tuple(network(x) for network, x in zip(self.networks(len(parts)), parts))

    def run(self, network: Network, x: Tensor) -> Tensor:
        """`network` of x; with `recompute`, autograd keeps x alone.

        Recomputation stops as soon as all that was forgotten is back, and a convolution notes its input before it starts:
        one that comes last in `network` is not repeated.
        """
        if self.recompute == "nothing" or not torch.is_grad_enabled():
            return network(x)
        # No layer draws random numbers; to keep their state would make a GPU wait for the host.
        return checkpoint(network, x, use_reentrant=False, preserve_rng_state=False)


def networks(layer: nn.Module, count: int) -> list[Network]:
    assert isinstance(layer, Layer)
    return layer.networks(count)


def set_recompute(network: nn.Module, what: Recompute) -> None:
    """Choose for all layers of `network`. Results and gradients are the same, bit for bit."""
    for module in network.modules():
        if isinstance(module, Layer):
            module.recompute = what


class Convolution(Layer, nn.Conv2d):  # type: ignore[misc]
    """Square convolution of `copies` networks, each from `inputs` to `outputs` channels."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, copies: int = 1
    ) -> None:
        super().__init__(copies * inputs, copies * outputs, kernel, stride, padding, groups=copies)

    def networks(self, count: int) -> list[Network]:
        assert self.bias is not None
        options: dict[str, Any] = {
            "stride": self.stride, "padding": self.padding, "groups": self.groups // count
        }  # fmt: skip
        weights, biases = split_parameter(self.weight, count), split_parameter(self.bias, count)
        return [partial(F.conv2d, weight=w, bias=b, **options) for w, b in zip(weights, biases)]


class Normalisation(Layer, nn.GroupNorm):  # type: ignore[misc]
    """GroupNorm of `copies` networks, each with its own `groups`: statistics never mix samples or networks."""

    def __init__(self, groups: int, channels: int, copies: int = 1) -> None:
        super().__init__(copies * groups, copies * channels)

    def networks(self, count: int) -> list[Network]:
        options: dict[str, Any] = {"num_groups": self.num_groups // count, "eps": self.eps}
        weights, biases = split_parameter(self.weight, count), split_parameter(self.bias, count)
        return [partial(F.group_norm, weight=w, bias=b, **options) for w, b in zip(weights, biases)]


def activated(norm: Network, convolution: Network, x: Tensor) -> Tensor:
    """GroupNorm, SiLU, convolution."""
    return convolution(F.silu(norm(x)))


class ResidualBlock(Layer):
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

    def networks(self, count: int) -> list[Network]:
        pairs = [
            list(map(partial, [activated] * count, networks(norm, count), networks(convolution, count)))
            for norm, convolution in zip(self.norms, self.convolutions)
        ]
        shortcuts = [identity] * count if self.shortcut is None else self.shortcut.networks(count)
        return [partial(self._network, layers, shortcut) for layers, shortcut in zip(zip(*pairs), shortcuts)]

    def _network(self, layers: Sequence[Network], shortcut: Network, x: Tensor) -> Tensor:
        hidden = x
        for layer in layers:
            hidden = self.run(layer, hidden)
        return shortcut(x) + hidden


class Downsampling(Layer):
    """3x3 convolution with stride 2 after zero-padding one pixel right and bottom: halves both sides."""

    def __init__(self, channels: int, copies: int = 1) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 3, stride=2, copies=copies)

    def networks(self, count: int) -> list[Network]:
        return [
            partial(self.run, partial(padded, convolution))
            for convolution in self.convolution.networks(count)
        ]


def padded(convolution: Network, x: Tensor) -> Tensor:
    return convolution(F.pad(x, (0, 1, 0, 1)))


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


def identity(x: Tensor) -> Tensor:
    return x


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


class Upsampling(Layer):
    """Nearest-neighbour doubling of both sides, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 3, padding=1)

    def networks(self, count: int) -> list[Network]:
        return [
            partial(self.run, partial(doubled, convolution))
            for convolution in self.convolution.networks(count)
        ]


def doubled(convolution: Network, x: Tensor) -> Tensor:
    return convolution(F.interpolate(x, scale_factor=2, mode="nearest"))


@contextmanager
def seeded_initialisation(seed: int, network: str) -> Iterator[None]:
    """Initial weights drawn inside are a function of (seed, name of the network) and disturb no random state outside."""
    digest = hashlib.sha256(f"{network} {seed}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would seed the GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
        yield
