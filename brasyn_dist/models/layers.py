"""Building blocks of the generator.

Every block computes one network, or several networks of the same shape side by side ("stacked"): their
parameters are stacked along dimension 0, their channels follow each other, and the convolutions are grouped.
The input decides: a convolution has as many groups as its input has times the channels that its weight
expects. `unstack` gives the parameters of the single networks.

No block has dropout. The newer published blocks have none either. Random numbers would have to be functions
of (seed, step, sample, layer), so that a resumed run repeats them and the result does not depend on how a
batch is split.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brasyn_dist.config import Recompute

Function = Callable[[Tensor], Tensor]


class Convolution(nn.Conv2d):
    """Square convolution of `stacked` networks, each from `inputs` to `outputs` channels."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, stacked: int = 1
    ) -> None:
        super().__init__(stacked * inputs, stacked * outputs, kernel, stride, padding, groups=stacked)

    def bound(self) -> Function:
        """The layer as a function that keeps the current parameters, which a recomputation needs."""
        weight, bias = self.weight, self.bias
        return lambda x: F.conv2d(
            x, weight, bias, self.stride, self.padding, groups=x.shape[1] // weight.shape[1]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, channels, H, W)."""
        return self.bound()(x)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of `stacked` networks with `groups` each; statistics never mix samples or networks."""

    def __init__(self, groups: int, channels: int, stacked: int = 1) -> None:
        super().__init__(stacked * groups, stacked * channels)

    def bound(self) -> Function:
        """See `Convolution.bound`."""
        weight, bias, group_size = self.weight, self.bias, self.num_channels // self.num_groups
        return lambda x: F.group_norm(x, x.shape[1] // group_size, weight, bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, channels, H, W)."""
        return self.bound()(x)


class Block(nn.Module):
    """A block whose intermediate tensors can be recomputed in the backward instead of kept."""

    recompute: Recompute = "nothing"

    def checkpointed(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`function(*inputs)`; with `recompute`, autograd keeps only the inputs.

        The recomputation ends as soon as all tensors exist that the backward needs. A convolution saves its
        input before it starts, so one that comes last in `function` is not repeated.
        """
        if self.recompute == "nothing" or not torch.is_grad_enabled():
            return function(*inputs)
        # No block draws random numbers. Preserving their state would make a GPU wait for the host.
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def set_recompute(network: nn.Module, what: Recompute) -> None:
    """Set `recompute` of all blocks of `network`. Results and gradients are the same, bit for bit."""
    for module in network.modules():
        if isinstance(module, Block):
            module.recompute = what


def norm_silu_convolution(norm: Function, convolution: Function, x: Tensor) -> Tensor:
    """GroupNorm, SiLU, convolution."""
    return convolution(F.silu(norm(x)))


def norm_convolution(norm: Function, convolution: Function, x: Tensor) -> Tensor:
    """GroupNorm, convolution."""
    return convolution(norm(x))


def silu_norm_convolution(norm: Function, convolution: Function, x: Tensor) -> Tensor:
    """SiLU, GroupNorm, convolution."""
    return convolution(norm(F.silu(x)))


class ResidualBlock(Block):
    """x + layers(x): GroupNorm, SiLU and a 3x3 convolution, `convolutions` times.

    With `activate_last`, the order is GroupNorm, convolution, SiLU. A change of width adds a 1x1 convolution
    to the shortcut.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        convolutions: int = 1,
        stacked: int = 1,
        activate_last: bool = False,
    ) -> None:
        super().__init__()
        self.activate_last = activate_last
        widths = [inputs] + [outputs] * convolutions
        self.norms = nn.ModuleList(GroupNorm(groups, width, stacked) for width in widths[:-1])
        self.convolutions = nn.ModuleList(
            Convolution(a, b, 3, padding=1, stacked=stacked) for a, b in itertools.pairwise(widths)
        )
        self.shortcut = Convolution(inputs, outputs, 1, stacked=stacked) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        hidden = x
        for number, (norm, convolution) in enumerate(zip(self.norms, self.convolutions)):
            # Each function ends with its convolution, so that a recomputation does not repeat it.
            function = norm_silu_convolution
            if self.activate_last:
                function = silu_norm_convolution if number else norm_convolution
            layers = partial(function, norm.bound(), convolution.bound())  # type: ignore[operator]
            hidden = self.checkpointed(layers, hidden)
        if self.activate_last:
            hidden = F.silu(hidden)
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class Downsampling(Block):
    """3x3 convolution with stride 2 after zero-padding one pixel right and bottom: halves both sides."""

    def __init__(self, channels: int, stacked: int = 1) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 3, stride=2, stacked=stacked)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels, H / 2, W / 2)."""
        convolution = self.convolution.bound()
        return self.checkpointed(lambda x: convolution(F.pad(x, (0, 1, 0, 1))), x)


class Upsampling(Block):
    """Nearest-neighbour doubling of both sides, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels, 2 H, 2 W)."""
        convolution = self.convolution.bound()
        return self.checkpointed(lambda x: convolution(F.interpolate(x, scale_factor=2, mode="nearest")), x)


class Encoder(nn.Module):
    """3x3 stem, then one residual block per stage, with a downsampling between stages.

    See docs/explanation/method.md, section 3. Stage i has `widths[i]` channels at 1 / 2^i of the input size.
    """

    def __init__(
        self,
        inputs: int,
        widths: tuple[int, ...],
        block: Callable[..., ResidualBlock],
        stacked: int = 1,
        full_size: bool = False,
    ) -> None:
        """`block`: ResidualBlock with its options. `full_size`: return the output of stage 0, too."""
        super().__init__()
        self.full_size = full_size
        self.stem = Convolution(inputs, widths[0], 3, padding=1, stacked=stacked)
        self.blocks = nn.ModuleList(
            block(a, b, stacked=stacked) for a, b in zip((widths[0], *widths), widths)
        )
        self.downsamplings = nn.ModuleList(Downsampling(width, stacked) for width in widths[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs (B, C_i, h_i, w_i) of stages 1 to the last, with `full_size` of all stages."""
        features = [self.blocks[0](self.stem(x))]
        for downsampling, block in zip(self.downsamplings, self.blocks[1:]):
            features.append(block(downsampling(features[-1])))
        return features if self.full_size else features[1:]


class ChannelGate(nn.Module):
    """Channel attention: sigmoid(1x1 convolution(SiLU(1x1 convolution(mean over pixels)))).

    With `pixelwise`, a network of the same parameters without attention: 1x1 convolution, SiLU, 1x1
    convolution at each pixel.
    """

    def __init__(self, channels: int, stacked: int = 1, pixelwise: bool = False) -> None:
        super().__init__()
        self.pixelwise = pixelwise
        self.squeeze = Convolution(channels, channels, 1, stacked=stacked)
        self.excite = Convolution(channels, channels, 1, stacked=stacked)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 1, 1) in (0, 1); with `pixelwise` to (B, C, H, W)."""
        if self.pixelwise:
            return self.excite(F.silu(self.squeeze(x)))
        return torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))


def unstack(network: nn.Module, count: int) -> list[dict[str, Tensor]]:
    """Parameters by name of each of the `count` stacked networks, for `torch.func.functional_call`."""
    # `unbind`, unlike indexing, has one backward for all networks: no zero-filled gradients that are added
    # up.
    split = {name: p.unflatten(0, (count, -1)).unbind() for name, p in network.named_parameters()}
    return [{name: parts[i] for name, parts in split.items()} for i in range(count)]


@contextmanager
def seeded_initialisation(seed: int, network: str) -> Iterator[None]:
    """Context: initial weights are a function of (seed, network); no other random state changes."""
    digest = hashlib.sha256(f"{network} {seed}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would also seed the GPUs.
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
        yield
