"""Every shell command of the documents is executed here as it is written, at reduced size, or is marked (markdown.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docs.markdown import DOCUMENTS, NEEDS, Block, blocks
from tests.small import small_cases

README = REPOSITORY / "README.md"
EXECUTED = [d for d in DOCUMENTS if d != README and any(b.executable for b in blocks(d))]


def test_every_mark_names_what_is_known():
    marked = [block for document in DOCUMENTS for block in blocks(document)]
    assert {b.needs for b in marked} - {None} <= NEEDS
    for block in marked:
        if block.tested:
            assert (REPOSITORY / block.tested).is_file(), f"{block.document}: {block.tested}"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with stand-ins for the programs that start this package."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("brasyn", "python", "python3", "accelerate", "torchrun"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("reduced.py")} {name} "$@"\n'
        )
        script.chmod(0o755)
    return folder


def execute(block: Block, folder: Path, programs: Path) -> str:
    """Output of a block in `folder`."""
    environment = {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.commands],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{block.document.name}:\n{block.commands}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> tuple[Path, str]:
    """Working folder and output after the commands of README.md, on phantom cases beside the files of the repository."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "launch", "slurm", "tools", "benchmarks", "container"):
        (folder / name).symlink_to(REPOSITORY / name)
    small_cases(folder / "data")
    output = "".join(execute(b, folder, programs) for b in blocks(README) if b.executable)
    return folder, output


@pytest.mark.slow
def test_readme(after_readme: tuple[Path, str]):
    folder, output = after_readme
    assert "GFLOP" in output and "best copy" in output
    report = (folder / "evaluation/report.html").read_text()
    assert "Not scored" not in report and "http://" not in report and "https://" not in report


@pytest.mark.slow
@pytest.mark.parametrize("document", EXECUTED, ids=lambda d: d.stem)
def test_document(document: Path, after_readme: tuple[Path, str], programs: Path, tmp_path: Path):
    """Guides may use what README.md made; getting started begins without it. All have these names of the reader's files."""
    folder = tmp_path / "work"
    before = shutil.ignore_patterns("shards", "runs") if document.parent.name == "getting-started" else None
    shutil.copytree(after_readme[0], folder, symlinks=True, ignore=before)
    for name in ("my_cohort", "complete_cases", "validation_cases"):
        shutil.copytree(folder / "data/train_gli", folder / name)
    for name in ("cases", "incomplete_cases"):
        shutil.copytree(folder / "incomplete", folder / name)
    for name in ("evaluation_a", "evaluation_b"):
        shutil.copytree(folder / "evaluation", folder / name)
    if before:
        for name in ("incomplete", "completed", "evaluation", "inspection"):
            shutil.rmtree(folder / name)
    for block in blocks(document):
        if block.executable:
            execute(block, folder, programs)


@pytest.mark.slow
@pytest.mark.real
def test_published_weights_as_the_guide_converts_them(programs: Path, shared: Path, tmp_path: Path):
    """The reference file's names carry a prefix that real checkpoints lack; its network has 4 heads instead of 16."""
    from safetensors.torch import load_file, save_file

    weights = load_file(shared / "reference/generator-grouped.safetensors")
    published = {k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")}
    save_file(published, tmp_path / "PUBLISHED.safetensors")
    small_cases(tmp_path / "data", cases=2)
    [block] = [
        b for b in blocks(REPOSITORY / "docs/how-to/share-a-model.md") if "brasyn convert" in b.commands
    ]
    drop = Block(README, "brasyn drop-modality data/train_gli cases")
    convert = Block(block.document, block.commands.replace("--heads 16", "--heads 4"))
    for each in (drop, convert):
        execute(each, tmp_path, programs)
    assert list((tmp_path / "completed").glob("*.nii.gz"))
