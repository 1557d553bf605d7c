"""Blocks of stacked networks: the same numbers as the networks one by one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from brasyn_dist.models.layers import (
    ChannelGate,
    Convolution,
    Downsampling,
    Encoder,
    GroupNorm,
    ResidualBlock,
    Upsampling,
    seeded_initialisation,
    unstack,
)

NETWORKS = 4


def images(channels: int, count: int = 2, side: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, channels, side, side, generator=generator, dtype=torch.float64)


def shaken(module: nn.Module) -> nn.Module:
    """Random affine parameters too: ones and zeros would hide a mix-up."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.double()


@pytest.mark.parametrize(
    "build",
    [
        lambda stacked: Convolution(3, 8, 3, padding=1, stacked=stacked),
        lambda stacked: GroupNorm(3, 3, stacked=stacked),
        lambda stacked: ResidualBlock(3, 6, 3, 1, stacked=stacked),
        lambda stacked: ResidualBlock(3, 6, 3, 2, stacked=stacked),
        lambda stacked: ResidualBlock(3, 6, 3, 2, stacked=stacked, activate_last=True),
        lambda stacked: Downsampling(3, stacked=stacked),
        lambda stacked: ChannelGate(3, stacked=stacked),
        lambda stacked: ChannelGate(3, stacked=stacked, pixelwise=True),
    ],
    ids=[
        "convolution",
        "norm",
        "block",
        "block of two",
        "described block",
        "downsampling",
        "gate",
        "pixelwise",
    ],
)
def test_stacked_networks_are_the_single_ones(build):
    """Together on stacked channels, one by one by functional_call, and as networks with their own parameters."""
    stacked, x = shaken(build(NETWORKS)), images(3 * NETWORKS)
    weights = unstack(stacked, NETWORKS)
    inputs = x.chunk(NETWORKS, 1)
    single = [functional_call(stacked, w, part) for w, part in zip(weights, inputs)]
    torch.testing.assert_close(torch.cat(single, 1), stacked(x), rtol=0, atol=1e-12)
    alone = build(1).double()
    for w, part, output in zip(weights, inputs, single):
        alone.load_state_dict(w)
        assert torch.equal(alone(part), output)


def test_a_network_that_is_not_computed_gets_a_gradient_of_zero():
    encoder = Encoder(1, (4, 8), partial(ResidualBlock, groups=4), stacked=NETWORKS).double()
    weights = unstack(encoder, NETWORKS)
    sum(functional_call(encoder, weights[m], images(1))[-1].square().sum() for m in (0, 2)).backward()
    gradient = encoder.stem.weight.grad.unflatten(0, (NETWORKS, -1)).flatten(1).abs().sum(1)
    assert (gradient > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("activate_last", [False, True], ids=["published", "described"])
@pytest.mark.parametrize("convolutions", [1, 2])
def test_residual_block_is_as_described(convolutions, activate_last):
    """Published: GroupNorm, SiLU, convolution. Described by the text: GroupNorm, convolution, SiLU."""
    block = shaken(ResidualBlock(4, 6, 2, convolutions, activate_last=activate_last))
    x = images(4)
    hidden = x
    for norm, convolution in zip(block.norms, block.convolutions):
        normed = F.group_norm(hidden, 2, norm.weight, norm.bias, 1e-5)
        before, after = (nn.Identity(), F.silu) if activate_last else (F.silu, nn.Identity())
        hidden = after(F.conv2d(before(normed), convolution.weight, convolution.bias, padding=1))
    expected = F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + hidden
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    assert len(block.convolutions) == convolutions


def test_residual_block_of_equal_widths_has_no_shortcut_convolution():
    assert ResidualBlock(4, 4, 2).shortcut is None


def test_downsampling_pads_right_and_bottom():
    layer = shaken(Downsampling(1))
    x = images(1, 1, side=4)
    y = layer(x)
    assert y.shape == (1, 1, 2, 2)
    # The first output sees the top left 3 x 3 pixels, unpadded.
    corner = (layer.convolution.weight[0, 0] * x[0, 0, :3, :3]).sum() + layer.convolution.bias[0]
    torch.testing.assert_close(y[0, 0, 0, 0], corner)


def test_upsampling_repeats_pixels():
    layer = shaken(Upsampling(2))
    x = images(2, 1, side=3)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, layer.convolution.weight, layer.convolution.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_encoder_returns_all_stages_but_the_full_size_one():
    encoder = Encoder(4, (4, 8, 12), partial(ResidualBlock, groups=4))
    stages = encoder(torch.zeros(2, 4, 16, 16))
    assert [tuple(x.shape) for x in stages] == [(2, 8, 8, 8), (2, 12, 4, 4)]


def test_encoder_returns_the_full_size_stage_for_the_described_decoder():
    encoder = Encoder(4, (4, 8, 12), partial(ResidualBlock, groups=4), full_size=True)
    stages = encoder(torch.zeros(2, 4, 16, 16))
    assert [tuple(x.shape) for x in stages] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 12, 4, 4)]


def test_initial_weights_depend_on_seed_and_name_alone():
    def weights(seed: int, name: str) -> torch.Tensor:
        with seeded_initialisation(seed, name):
            return nn.Linear(3, 3).weight.detach().clone()

    torch.manual_seed(0)
    first = weights(1, "generator")
    state = torch.get_rng_state()
    assert torch.equal(first, weights(1, "generator"))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, weights(2, "generator"))
    assert not torch.equal(first, weights(1, "discriminator"))
