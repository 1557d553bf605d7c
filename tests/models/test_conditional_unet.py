"""The recommended generator: what its output depends on, its start, its gradients, its exports."""

from pathlib import Path

import pytest
import torch

from brasyn_dist.brats import BRATS
from brasyn_dist.config import UNetConfig
from brasyn_dist.errors import CheckpointError
from brasyn_dist.models.conditional_unet import ConditionalUNet, mean_of_available
from brasyn_dist.models.hfgan import HFGANGenerator
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED

SMALL = {"image_size": 48, "widths": (16, 32), "units": 1, "full_channels": 16, "condition": 8}
AVAILABLE = torch.tensor([[True, True, False, True], [False, True, False, False]])
TARGET, VIEW = torch.tensor([2, 3]), torch.tensor([0, 2])


def network(**options) -> ConditionalUNet:
    """A network in float64 whose layers that start at zero have random weights."""
    made = build_generator(UNetConfig(**(SMALL | options)), 0).double()
    noise = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if not parameter.detach().any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return made


def slices(seed: int = 0, size: tuple[int, ...] = (2, 4, 48, 48)) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_training_starts_from_the_mean_of_the_available_slices() -> None:
    x = slices().float()
    image, bottleneck = build_generator(UNetConfig(**SMALL), 0)(x, AVAILABLE, TARGET, VIEW)
    torch.testing.assert_close(image[0, 0], x[0, [0, 1, 3]].mean(0))
    torch.testing.assert_close(image[1, 0], x[1, 1])
    assert bottleneck.shape == (2, 32, 12, 12)


def test_missing_slices_do_not_matter() -> None:
    made, x = network(), slices()
    other = torch.where(AVAILABLE[:, :, None, None], x, slices(1))
    torch.testing.assert_close(
        made(other, AVAILABLE, TARGET, VIEW)[0], made(x, AVAILABLE, TARGET, VIEW)[0], rtol=0, atol=0
    )


@pytest.mark.parametrize("what", ["available", "target", "view"])
def test_every_condition_matters(what: str) -> None:
    made, x = network(), slices()
    arguments = {"available": AVAILABLE, "target": TARGET, "view": VIEW}
    changed = {"available": torch.ones(2, 4, dtype=torch.bool), "target": TARGET - 1, "view": VIEW - 2}
    before = made(x, *arguments.values())[0]
    after = made(x, *(arguments | {what: changed[what]}).values())[0]
    assert (before - after).abs().amax((1, 2, 3)).min() > 1e-4


def test_every_parameter_has_a_gradient() -> None:
    """Also with neighbouring slices; DistributedDataParallel needs it."""
    made = network(context=1)
    context = slices(2, (2, 2, 4, 48, 48))
    made(slices(), AVAILABLE, TARGET, VIEW, context)[0].square().sum().backward()
    assert not [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]


def test_neighbouring_slices_matter_where_they_are_available() -> None:
    made, x, context = network(context=1), slices(), slices(2, (2, 2, 4, 48, 48))
    image = made(x, AVAILABLE, TARGET, VIEW, context)[0]
    missing = torch.where(AVAILABLE[:, None, :, None, None], context, 7.0)
    torch.testing.assert_close(made(x, AVAILABLE, TARGET, VIEW, missing)[0], image, rtol=0, atol=0)
    assert (made(x, AVAILABLE, TARGET, VIEW, context.flip(1))[0] - image).abs().amax((1, 2, 3)).min() > 1e-4


def test_any_even_size_and_each_sample_alone() -> None:
    made, x = network(), slices(0, (2, 4, 38, 50))
    whole = made(x, AVAILABLE, TARGET, VIEW)[0]
    assert whole.shape == (2, 1, 38, 50)
    alone = made(x[1:], AVAILABLE[1:], TARGET[1:], VIEW[1:])[0]
    torch.testing.assert_close(whole[1:], alone, rtol=0, atol=1e-12)


def test_synthesise_is_forward_for_one_subset() -> None:
    made, x = network(), slices()
    available = torch.tensor([[True, False, False, True]] * 2)
    expected = made(x, available, torch.tensor([1, 1]), torch.tensor([2, 2]))[0]
    torch.testing.assert_close(made.synthesise(x, (0, 3), 1, 2), expected, rtol=0, atol=0)


def test_recomputation_changes_no_gradient() -> None:
    gradients = []
    for what in ("nothing", "activations"):
        made = network()
        set_recompute(made, what)  # type: ignore[arg-type]
        made(slices(), AVAILABLE, TARGET, VIEW)[0].square().sum().backward()
        gradients.append([p.grad for p in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_recommended_sizes() -> None:
    """The numbers of parameters that the documents state."""
    for options, parameters in (
        ({"widths": (32, 64, 128, 192), "full_channels": 16, "condition": 64}, 1_642_657),
        ({"context": 1}, 27_436_065),
    ):
        with torch.device("meta"):
            made = ConditionalUNet(UNetConfig(**options))  # type: ignore[arg-type]
        assert sum(p.numel() for p in made.parameters()) == parameters


def test_exports_are_loaded_by_their_kind(tmp_path: Path) -> None:
    made, x = network().float(), slices().float()
    made.save_pretrained(tmp_path, Preprocessing(PUBLISHED, ("axial",), modality_set=BRATS))
    loaded = Generator.from_pretrained(tmp_path)
    assert isinstance(loaded, ConditionalUNet) and loaded.config == made.config
    with torch.no_grad():
        assert torch.equal(loaded(x, AVAILABLE, TARGET, VIEW)[0], made(x, AVAILABLE, TARGET, VIEW)[0])
    with pytest.raises(CheckpointError, match="kind unet"):
        HFGANGenerator.from_pretrained(tmp_path)


def test_mean_of_available_by_hand() -> None:
    x = slices()
    torch.testing.assert_close(mean_of_available(x, AVAILABLE)[0, 0], (x[0, 0] + x[0, 1] + x[0, 3]) / 3)
