"""Small networks for tests: the published shape at an eighth of the width and 48 x 48 pixels."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from brasyn_dist.config import GeneratorConfig


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def small_config(**options) -> GeneratorConfig:
    values = {"image_size": 48, "base_channels": 8, "transformer_layers": 1, "heads": 4}
    return GeneratorConfig(**(values | options))


def reference_file(shared: Path, name: str) -> Path:
    path = shared / "reference" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


def reference(shared: Path, name: str) -> dict[str, Tensor]:
    return load_file(reference_file(shared, name))
