"""Layers that hold several networks: the same numbers as the networks one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brasyn_dist.models.layers import (
    ChannelGate,
    Convolution,
    Downsampling,
    Encoder,
    Normalisation,
    ResidualBlock,
    Upsampling,
    seeded_initialisation,
)

NETWORKS = 4


def rows(channels: int, counts=(2, 1, 3, 2), side: int = 12) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(
        torch.randn(n, channels, side, side, generator=generator, dtype=torch.float64) for n in counts
    )


def shaken(module: nn.Module) -> nn.Module:
    """Random affine parameters too: ones and zeros would hide a mix-up."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.double()


@pytest.mark.parametrize(
    "layer",
    [
        Convolution(3, 8, 3, padding=1, copies=NETWORKS),
        Normalisation(3, 3, copies=NETWORKS),
        ResidualBlock(3, 6, 3, 1, copies=NETWORKS),
        ResidualBlock(3, 6, 3, 2, copies=NETWORKS),
        Downsampling(3, copies=NETWORKS),
        ChannelGate(3, copies=NETWORKS),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_grouped_and_dense_parts_agree(layer):
    layer = shaken(layer)
    parts = rows(3, counts=(2, 2, 2, 2))
    dense = layer(parts)
    (grouped,) = layer((torch.cat(parts, 1),))
    torch.testing.assert_close(torch.cat(dense, 1), grouped, rtol=0, atol=1e-12)


def test_dense_convolution_is_each_networks_own():
    layer = shaken(Convolution(3, 8, 3, padding=1, copies=NETWORKS))
    parts = rows(3)
    for m, (x, y) in enumerate(zip(parts, layer(parts))):
        own = F.conv2d(x, layer.weight[8 * m : 8 * m + 8], layer.bias[8 * m : 8 * m + 8], padding=1)
        assert torch.equal(y, own)


def test_networks_without_rows_do_nothing_and_get_no_gradient():
    encoder = Encoder(1, (4, 8), 4, copies=NETWORKS).double()
    stages = encoder(rows(1, counts=(2, 0, 1, 0)))
    assert [len(x) for x in stages[-1]] == [2, 0, 1, 0]
    sum(x.square().sum() for x in stages[-1]).backward()
    gradient = encoder.stem.weight.grad.unflatten(0, (NETWORKS, -1)).flatten(1).abs().sum(1)
    assert (gradient > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("convolutions", [1, 2])
def test_residual_block_is_as_described(convolutions):
    block = shaken(ResidualBlock(4, 6, 2, convolutions))
    (x,) = rows(4, counts=(2,))
    hidden = x
    for norm, convolution in zip(block.norms, block.convolutions):
        normed = F.group_norm(hidden, 2, norm.weight, norm.bias, 1e-5)
        hidden = F.conv2d(F.silu(normed), convolution.weight, convolution.bias, padding=1)
    expected = F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + hidden
    torch.testing.assert_close(block((x,))[0], expected, rtol=0, atol=1e-12)
    assert len(block.convolutions) == convolutions


def test_residual_block_of_equal_widths_has_no_shortcut_convolution():
    assert ResidualBlock(4, 4, 2).shortcut is None


def test_downsampling_pads_right_and_bottom():
    layer = shaken(Downsampling(1))
    (x,) = rows(1, counts=(1,), side=4)
    (y,) = layer((x,))
    assert y.shape == (1, 1, 2, 2)
    # The first output sees the top left 3 x 3 pixels, unpadded.
    corner = (layer.convolution.weight[0, 0] * x[0, 0, :3, :3]).sum() + layer.convolution.bias[0]
    torch.testing.assert_close(y[0, 0, 0, 0], corner)


def test_upsampling_repeats_pixels():
    layer = shaken(Upsampling(2))
    (x,) = rows(2, counts=(1,), side=3)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, layer.convolution.weight, layer.convolution.bias, padding=1)
    torch.testing.assert_close(layer((x,))[0], expected)


def test_encoder_returns_all_stages_but_the_full_size_one():
    encoder = Encoder(4, (4, 8, 12), 4)
    stages = encoder((torch.zeros(2, 4, 16, 16),))
    assert [tuple(x.shape) for (x,) in stages] == [(2, 8, 8, 8), (2, 12, 4, 4)]


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
