"""The segmenter: size, cost and shape as the method has them; what it is told; out to a folder and in again."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brasyn_dist.brats import UNKNOWN_TYPE
from brasyn_dist.config import SegmenterConfig, load_config
from brasyn_dist.errors import CheckpointError, ConfigError
from brasyn_dist.models.pretrained import load_weights
from brasyn_dist.models.registry import Generator
from brasyn_dist.models.segmenter import Segmenter, build_segmenter
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED

SMALL = SegmenterConfig(image_size=16, widths=(8, 16, 24))


def slices(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(1))


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.fixture
def segmenter() -> Segmenter:
    return build_segmenter(SMALL, 0).eval()


def test_full_width_has_the_methods_size_and_downsamples():
    """Method, section 4: about 1.8 million parameters; published with stride 1 throughout, at 207 GFLOP a slice."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Segmenter(SegmenterConfig())
        shapes = []
        for stage in network.encoder:
            stage.register_forward_hook(lambda m, i, output: shapes.append(tuple(output.shape[1:])))
        zero = torch.zeros(1, dtype=torch.int64)
        logits = network(torch.empty(1, 4, 240, 240), zero, zero)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.8e6, rel=0.005)
    assert shapes == [(32, 240, 240), (64, 120, 120), (128, 60, 60), (256, 30, 30)]
    assert logits.shape == (1, 4, 240, 240)
    assert counter.get_total_flops() < 20e9


def test_weights_are_a_function_of_the_seed():
    first, again, other = (build_segmenter(SMALL, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_view_and_tumour_type_matter_and_unknown_is_neither(segmenter: Segmenter):
    x = slices(1)
    outputs = [
        segmenter(x, numbers(view), numbers(kind)) for view in range(3) for kind in (0, 1, UNKNOWN_TYPE)
    ]
    for i, a in enumerate(outputs):
        assert all(not torch.allclose(a, b) for b in outputs[i + 1 :])


def test_a_slice_does_not_depend_on_its_batch_in_training_either(segmenter: Segmenter):
    x, view, kind = slices().double(), numbers(0, 1, 2), numbers(0, 1, 0)
    segmenter.double()
    together = segmenter.train()(x, view, kind)
    assert torch.equal(together, segmenter.eval()(x, view, kind))
    for i in range(3):
        alone = segmenter(x[i : i + 1], view[i : i + 1], kind[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], rtol=0, atol=1e-12)


def test_every_parameter_learns(segmenter: Segmenter):
    segmenter(slices(), numbers(0, 1, 2), numbers(0, 1, 0)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in segmenter.parameters())


def test_round_trip(segmenter: Segmenter, tmp_path: Path):
    preprocessing = Preprocessing(PUBLISHED, ("axial", "coronal"), "slice")
    segmenter.save_pretrained(tmp_path / "run/export", preprocessing, 7)
    for path in (tmp_path / "run", tmp_path / "run/export"):
        loaded = Segmenter.from_pretrained(path)
        assert loaded.config == SMALL and not loaded.training
        assert loaded.preprocessing == preprocessing
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.parameters(), segmenter.parameters(), strict=True)
        )
    other = build_segmenter(SMALL, 5)
    load_weights(other, tmp_path / "run")
    assert torch.equal(other.output.weight, segmenter.output.weight)
    values = json.loads((tmp_path / "run/export/config.json").read_text())
    assert values["format"] == "brasyn_dist.segmenter" and values["segmenter"]["widths"] == [8, 16, 24]


def test_a_segmenter_is_no_generator(segmenter: Segmenter, tmp_path: Path):
    segmenter.save_pretrained(tmp_path, Preprocessing(PUBLISHED))
    with pytest.raises(CheckpointError, match="weights of task segmenter, where task generator is needed"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no exported segmenter"):
        Segmenter.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_size": 20, "widths": (8, 16, 24, 32)}, "multiple of 8"),
        ({"widths": (8, 12)}, "multiples of segmenter.norm_groups"),
        ({"widths": (8,)}, "a list of at least 2 int"),
    ],
)
def test_impossible_shapes_are_refused(values: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        SegmenterConfig(**values)


def test_the_objective_needs_a_segmenter_for_its_term():
    with pytest.raises(ConfigError, match=r"objective\.segmenter"):
        load_config(None, ["objective.tversky=5"])
