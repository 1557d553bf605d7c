"""The discriminator against the published one."""

import pytest
import torch

from brasyn_dist.brats import image_shape
from brasyn_dist.config import DiscriminatorConfig
from brasyn_dist.models.discriminator import Discriminator, build_discriminator
from brasyn_dist.models.published_weights import convert_discriminator
from tests.models.conftest import reference


@pytest.mark.real
def test_equals_the_published_network(shared):
    tensors = reference(shared, "discriminator")
    config, state = convert_discriminator(tensors)
    assert config == DiscriminatorConfig(image_size=240, base_channels=8)
    discriminator = Discriminator(config).double()
    discriminator.load_state_dict(state)
    with torch.no_grad():
        patch, classes = discriminator(tensors["input"].double())
    assert (patch - tensors["logits"]).abs().max() < 1e-9
    assert (classes - tensors["classes"]).abs().max() < 1e-9


def test_published_shape_has_the_published_number_of_parameters():
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig())
    assert sum(p.numel() for p in discriminator.parameters()) == 4_485_952


@pytest.mark.parametrize("size", [32, 48, 240, (160, 208)])
def test_heads_fit_the_image_size(size):
    height, width = image_shape(size)
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig(image_size=size, base_channels=8))
        patch, classes = discriminator(torch.empty(3, 1, height, width))
    assert patch.shape == (3, 1, height // 8 - 2, width // 8 - 2)
    assert classes.shape == (3, 4)


def test_initial_weights_are_a_function_of_configuration_and_seed():
    config = DiscriminatorConfig(image_size=32, base_channels=8)
    first, second = build_discriminator(config, 1).state_dict(), build_discriminator(config, 1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.weight"], build_discriminator(config, 2).state_dict()["stem.weight"])
