"""Fixtures of the robustness tests."""

from pathlib import Path

import pytest

from tests.inference.small import export


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of an untrained axial model."""
    return export(tmp_path_factory.mktemp("weights") / "export", ["axial"])
