"""The notebooks of docs/tutorials run from the first to the last cell, in an empty folder."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

nbformat = pytest.importorskip("nbformat", reason="needs the extra dev")
nbclient = pytest.importorskip("nbclient", reason="needs the extra dev")
pytest.importorskip("ipykernel", reason="needs the extra dev")
NOTEBOOKS = sorted((REPOSITORY / "docs/tutorials").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bin").mkdir()
    brasyn = tmp_path / "bin/brasyn"
    brasyn.write_text(f'#!/bin/sh\nexec {sys.executable} -m brasyn_dist "$@"\n')
    brasyn.chmod(0o755)
    monkeypatch.setenv("PATH", f"{brasyn.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    if folder := os.environ.get("BRASYN_NOTEBOOKS"):  # to look at the outputs
        nbformat.write(notebook, Path(folder) / path.name)
