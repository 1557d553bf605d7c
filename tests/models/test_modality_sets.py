"""Networks and preprocessing for another set of modalities than BraTS' four, with other labels or without any."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.config import DiscriminatorConfig, SegmenterConfig
from brasyn_dist.data.loading.sampler import BatchMasks
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.cycle_synthesis import CycleSynthesis
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.models.segmenter import Segmenter, build_segmenter
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.normalisation import mask_missing
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import Histogram, ModalityStatistics, Statistics
from brasyn_dist.training.cycle_inputs import cycle_inputs
from tests.models.conftest import small_config

PAIR = ModalitySet("pair", ("pd", "dwi"))
"""Without labels. Not in alphabetical order: the order of the set counts, also after a sorted JSON file."""
LABELLED = ModalitySet("lesions", ("pd", "dwi"), labels={1: "lesion"}, regions={"ALL": (1,)})
STATISTICS = Statistics({"pd": ModalityStatistics(900, 90, 30, 5), "dwi": ModalityStatistics(500, 50, 20, 5)})
SIDE = 32


def preprocessing(modality_set: ModalitySet) -> Preprocessing:
    scale = IntensityScaleModel.fit(np.array([[100.0, 200], [110, 190]]))
    return Preprocessing(STATISTICS, ("axial",), "case", scale, modality_set)


def test_a_generator_of_two_modalities(tmp_path: Path) -> None:
    generator = build_generator(small_config(image_size=SIDE), 0, modality_set=PAIR)
    assert generator.early_encoder.stem.weight.shape[1] == generator.modality_encoders.stem.groups == 2
    x, available = torch.randn(2, 2, SIDE, SIDE), torch.tensor([[True, False]] * 2)
    with torch.no_grad():
        image = generator(mask_missing(x, available), available, torch.ones(2, dtype=torch.int64))[0]
        torch.testing.assert_close(generator.synthesise(x, (0,), 1), image)
    assert image.shape == (2, 1, SIDE, SIDE)
    generator.save_pretrained(tmp_path, preprocessing(PAIR))
    loaded = Generator.from_pretrained(tmp_path)
    assert loaded.modality_set == PAIR and loaded.preprocessing == preprocessing(PAIR)
    assert list(loaded.preprocessing.statistics.modalities) == ["pd", "dwi"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.synthesise(x, (0,), 1), image)


def test_both_passes_of_two_modalities() -> None:
    """From each modality the other one, and back: the fast passes equal the plain ones."""
    target, available = np.array([1, 0, 1]), np.array([[True, False], [False, True], [True, False]])
    plan = cycle_inputs([BatchMasks(target, available, 1 - target, ~available)])
    passes = CycleSynthesis(build_generator(small_config(image_size=SIDE), 0, modality_set=PAIR).double())
    real = torch.randn(3, 2, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        outputs = passes(real, None, plan)
        passes.fast = False
        for output, expected in zip(outputs, passes(real, None, plan), strict=True):
            torch.testing.assert_close(output, expected)


def test_a_discriminator_of_two_modalities() -> None:
    discriminator = build_discriminator(DiscriminatorConfig(image_size=SIDE, base_channels=8), 0, PAIR)
    assert discriminator(torch.zeros(3, 1, SIDE, SIDE))[1].shape == (3, 2)


def test_a_segmenter_of_other_labels(tmp_path: Path) -> None:
    config = SegmenterConfig(image_size=16, widths=(8, 16))
    segmenter = build_segmenter(config, 0, LABELLED)
    x, zero = torch.zeros(1, 2, 16, 16), torch.zeros(1, dtype=torch.int64)
    assert segmenter(x, zero, zero).shape == (1, 2, 16, 16)
    segmenter.save_pretrained(tmp_path, preprocessing(LABELLED))
    assert Segmenter.from_pretrained(tmp_path).modality_set == LABELLED
    with pytest.raises(ConfigError, match="pair has no labels"):
        build_segmenter(config, 0, PAIR)


def test_only_another_set_is_stored(tmp_path: Path) -> None:
    values = json.loads(json.dumps(preprocessing(PAIR).to_dict(), sort_keys=True))
    assert Preprocessing.from_dict(values, "config.json") == preprocessing(PAIR)
    del values["modality_set"]
    with pytest.raises(DataError, match=r"config\.json: no valid statistics"):
        Preprocessing.from_dict(values, "config.json")
    brats = build_generator(small_config(), 0).modality_set
    assert "modality_set" not in Preprocessing(STATISTICS, modality_set=brats).to_dict()


def test_statistics_and_normalisation_of_two_modalities(tmp_path: Path) -> None:
    histogram = Histogram(PAIR).add([np.bincount([10, 20, 30]), np.bincount([1, 2, 3])])
    statistics = histogram.statistics(["a"])
    assert statistics.column("mean") == pytest.approx((20, 2), rel=0.01)
    statistics.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json", PAIR) == statistics
    normalised = Preprocessing(STATISTICS, modality_set=PAIR).normaliser()(torch.tensor([[[[120]], [[0]]]]))
    torch.testing.assert_close(normalised.flatten(), torch.tensor([1.0, -1.0]))
