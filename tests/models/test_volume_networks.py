"""Networks of volumes: what their output depends on, the attention against a loop, gradients, exports."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brasyn_dist.config import RefinerConfig, VolumeUNetConfig
from brasyn_dist.errors import CheckpointError
from brasyn_dist.models.layers import set_recompute
from brasyn_dist.models.pretrained import REFINER, VOLUME
from brasyn_dist.models.refiner import EPSILON, ElementwiseAttention, Refiner
from brasyn_dist.models.volume_network import VolumeNetwork, build_volume_network
from brasyn_dist.models.volume_unet import VolumeUNet
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED

AVAILABLE = torch.tensor([[True, True, False, True], [False, True, False, False]])
TARGET = torch.tensor([2, 3])
CONFIGS: dict[str, Any] = {
    "unet": VolumeUNetConfig(widths=(16, 32), units=1, condition=8),
    "shared": RefinerConfig(channels=4, layers=1, smoothing=1),
    "separate": RefinerConfig("separate", channels=4, layers=1, smoothing=1),
}
every_network = pytest.mark.parametrize("name", CONFIGS)


def network(name: str) -> VolumeNetwork:
    """A network in float64 whose layers that start at zero have random weights."""
    made = build_volume_network(VOLUME if name == "unet" else REFINER, CONFIGS[name], 0).double()
    noise = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if not parameter.detach().any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return made


def patches(seed: int = 0, size: tuple[int, ...] = (2, 4, 12, 10, 8)) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STAGE1 = patches(7, (2, 1, 12, 10, 8))


def test_training_starts_from_the_mean_or_from_the_first_stage() -> None:
    x = patches().float()
    unet = build_volume_network(VOLUME, CONFIGS["unet"], 0)(x, AVAILABLE, TARGET)
    torch.testing.assert_close(unet[0, 0], x[0, [0, 1, 3]].mean(0))
    torch.testing.assert_close(unet[1, 0], x[1, 1])
    refined = build_volume_network(REFINER, CONFIGS["shared"], 0)(x, AVAILABLE, TARGET, STAGE1.float())
    torch.testing.assert_close(refined, STAGE1.float())


@every_network
def test_missing_volumes_do_not_matter(name: str) -> None:
    made, x = network(name), patches()
    other = torch.where(AVAILABLE[:, :, None, None, None], x, patches(1))
    expected = made(x, AVAILABLE, TARGET, STAGE1)
    torch.testing.assert_close(made(other, AVAILABLE, TARGET, STAGE1), expected, rtol=0, atol=0)
    with torch.no_grad():  # where the refiner leaves out modalities that no sample has
        alone = made(other[1:], AVAILABLE[1:], TARGET[1:], STAGE1[1:])
    torch.testing.assert_close(alone, expected[1:], rtol=0, atol=1e-12)


@every_network
@pytest.mark.parametrize("what", ["x", "available", "target", "stage1"])
def test_every_input_matters(name: str, what: str) -> None:
    if (name, what) == ("unet", "stage1"):
        return
    made = network(name)
    arguments = {"x": patches(), "available": AVAILABLE, "target": TARGET, "stage1": STAGE1}
    changed = {
        "x": patches(1), "available": torch.ones(2, 4, dtype=torch.bool), "target": TARGET - 1, "stage1": STAGE1.flip(2),
    }  # fmt: skip
    before = made(*arguments.values())
    after = made(*(arguments | {what: changed[what]}).values())
    assert (before - after).abs().amax((1, 2, 3, 4)).min() > 1e-4


def test_the_attention_equals_a_loop_over_voxels_and_channels() -> None:
    torch.manual_seed(0)
    channels, attention = 3, ElementwiseAttention(3).double()
    for parameter in attention.parameters():
        parameter.data = torch.randn_like(parameter)
    h, f = (torch.randn(2, channels, 2, 3, 2, dtype=torch.float64) for _ in range(2))

    def linear(layer: Any, values: list[float]) -> list[float]:
        weight, bias = layer.weight.detach()[:, :, 0, 0, 0].tolist(), layer.bias.tolist()
        return [b + sum(w * v for w, v in zip(row, values)) for row, b in zip(weight, bias)]

    def norm(layer: Any, values: list[float]) -> list[float]:
        scale = 1 / math.sqrt(sum(v * v for v in values) / channels + EPSILON)
        return [v * scale * w for v, w in zip(values, layer.weight.flatten().tolist())]

    result = attention(h, f)
    for b in range(2):
        for x in range(2):
            for y in range(3):
                for z in range(2):
                    own, other = (
                        h[b, :, x, y, z].tolist(),
                        norm(attention.key_norm, f[b, :, x, y, z].tolist()),
                    )
                    query = linear(attention.query, norm(attention.query_norm, own))
                    key, value = linear(attention.key, other), linear(attention.value, other)
                    own = [o + math.exp(-abs(q - k)) * v for o, q, k, v in zip(own, query, key, value)]
                    hidden = linear(attention.expand, norm(attention.feed_forward_norm, own))
                    hidden = [v / (1 + math.exp(-v)) for v in hidden]
                    wanted = [o + p for o, p in zip(own, linear(attention.project, hidden))]
                    assert result[b, :, x, y, z].tolist() == pytest.approx(wanted, rel=1e-10)


def test_a_refined_voxel_depends_on_its_receptive_field_only() -> None:
    made = network("shared")
    assert isinstance(made, Refiner) and made.receptive_radius == 3
    x, stage1 = patches(0, (1, 4, 16, 9, 9)), patches(1, (1, 1, 16, 9, 9))
    whole = made(x, AVAILABLE[:1], TARGET[:1], stage1)
    part = made(x[:, :, 4:], AVAILABLE[:1], TARGET[:1], stage1[:, :, 4:])
    torch.testing.assert_close(part[:, :, 3:], whole[:, :, 7:], rtol=0, atol=1e-12)
    assert (part[:, :, 2] - whole[:, :, 6]).abs().max() > 1e-8


@every_network
def test_recomputation_changes_no_bit_and_gradients_are_finite(name: str) -> None:
    gradients, available = (
        [],
        AVAILABLE | torch.tensor([[False, False, False, False], [False, False, True, False]]),
    )
    for what in ("nothing", "activations"):
        made = network(name).float()
        set_recompute(made, what)  # type: ignore[arg-type]
        made(patches().float(), available, TARGET, STAGE1.float()).square().sum().backward()
        gradients.append({n: p.grad for n, p in made.named_parameters()})
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients[0].values())
    assert all(torch.equal(g, gradients[1][n]) for n, g in gradients[0].items())


def test_recomputation_saves_memory() -> None:
    kept = {}
    for what in ("nothing", "activations"):
        made = network("separate")
        set_recompute(made, what)  # type: ignore[arg-type]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t
        ):
            made(patches(), AVAILABLE, TARGET, STAGE1)
        kept[what] = sum(sizes)
    assert kept["activations"] < 0.5 * kept["nothing"]


@every_network
def test_weights_are_a_function_of_the_seed_and_survive_an_export(name: str, tmp_path: Path) -> None:
    made = network(name).float()
    with pytest.raises(CheckpointError, match="statistics"):
        made.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path, Preprocessing(PUBLISHED, patch=(12, 10, 8)), 5)
    read = type(made).from_pretrained(tmp_path)
    assert read.config == made.config and read.step == 5
    assert read.preprocessing is not None and read.preprocessing.patch == (12, 10, 8)
    x = patches().float()
    torch.testing.assert_close(
        read(x, AVAILABLE, TARGET, STAGE1.float()), made(x, AVAILABLE, TARGET, STAGE1.float()), rtol=0, atol=0
    )
    twins = [build_volume_network(made.kind, made.config, seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(v, twins[1][k]) for k, v in twins[0].items())
    assert any(not torch.equal(v, twins[2][k]) for k, v in twins[0].items())


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    network("shared").save_pretrained(tmp_path, Preprocessing(PUBLISHED))
    with pytest.raises(CheckpointError, match="weights of task refiner, where task volume is needed"):
        VolumeUNet.from_pretrained(tmp_path)


def test_any_size_of_patch_is_accepted() -> None:
    made = network("unet")
    for size in ((7, 9, 5), (16, 8, 4)):
        assert made(patches(0, (2, 4, *size)), AVAILABLE, TARGET).shape == (2, 1, *size)
