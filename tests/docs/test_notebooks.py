"""The notebooks of docs/tutorials run from the first to the last cell, with few updates, in an empty folder."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

nbformat = pytest.importorskip("nbformat", reason="needs the extra dev")
nbclient = pytest.importorskip("nbclient", reason="needs the extra dev")
pytest.importorskip("ipykernel", reason="needs the extra dev")
STEPS = re.compile(r"(max_steps|every_steps|log_every)=[1-9]\d*")
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
    assert any(STEPS.search(cell.source) for cell in notebook.cells)
    if not os.environ.get("BRASYN_NOTEBOOKS"):
        for cell in notebook.cells:
            cell.source = STEPS.sub(r"\1=4", cell.source)
    work = tmp_path / "work"
    work.mkdir()
    nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    if folder := os.environ.get("BRASYN_NOTEBOOKS"):  # to look at the outputs, with all updates
        nbformat.write(notebook, Path(folder) / path.name)
