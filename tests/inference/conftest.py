"""Models shared by the tests of synthesis."""

from pathlib import Path

import pytest

from brasyn_dist.models.registry import Generator
from tests.inference.small import export, small_generator


@pytest.fixture(scope="session")
def generator() -> Generator:
    return small_generator()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that records all views as trained."""
    return export(tmp_path_factory.mktemp("weights") / "export")


@pytest.fixture(scope="session")
def axial_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("weights") / "axial", ["axial"])
