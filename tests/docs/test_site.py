"""The documentation site builds without warnings, and its reference pages contain what the code declares."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from brasyn_dist.cli.main import COMMANDS
from brasyn_dist.config import TASKS, all_options
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for name in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter"):
        try:
            importlib.import_module(name)
        except ImportError:
            pytest.skip(f"{name} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_command_line_page_has_every_subcommand(site: Path):
    page = (site / "reference/command-line/index.html").read_text()
    assert [name for name in COMMANDS if f'id="brasyn-{name}"' not in page] == []
    assert "--minimum-foreground" in page


@pytest.mark.slow
def test_the_configuration_page_has_every_option(site: Path):
    page = (site / "reference/configuration/index.html").read_text()
    names = {key.rpartition(".")[2] for task in TASKS.values() for key, _ in all_options(task)}
    assert [name for name in names if f"<code>{name}</code>" not in page] == []


@pytest.mark.slow
def test_the_python_page_has_docstrings(site: Path):
    page = (site / "reference/python/index.html").read_text()
    assert (
        "brasyn_dist.inference.api.infer_single" in page and "Synthesise every modality of one case" in page
    )
