"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def shared_dir() -> Path:
    """Folder with the real subjects and reference outputs; never part of the repository."""
    return Path(os.environ.get("BRASYN_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_dir()
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set BRASYN_SHARED to the folder with data/ and reference/")
    return folder
