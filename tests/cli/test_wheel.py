"""The package as users install it: from a wheel that was built from the sdist, outside the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import brasyn_dist
from tests.conftest import REPOSITORY
from tests.docs.reduced import GENERATOR, RUN

pytestmark = pytest.mark.slow
SOURCES = (
    "brasyn_dist",
    "configs",
    "launch",
    "slurm",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


def run(*command: object, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def copy_sources(folder: Path) -> Path:
    """A new folder with all that a wheel is built of: other tests read the repository meanwhile."""
    folder.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin folder of an environment with the wheel, which finds the dependencies in this environment."""
    work = tmp_path_factory.mktemp("wheel")
    source = copy_sources(work / "source")
    build = (
        "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    )
    run(sys.executable, "-c", build, "build_sdist", work, cwd=source)
    (sdist,) = work.glob("*.tar.gz")
    run("tar", "-xf", sdist, cwd=work)
    unpacked = work / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-c", build, "build_wheel", work, cwd=unpacked)
    (wheel,) = work.glob("*.whl")
    venv.create(work / "venv", with_pip=True)
    folder = work / "venv/bin"
    run(folder / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=work)
    site = run(
        folder / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work
    ).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_commands_and_packaged_files_outside_the_repository(scripts: Path, tmp_path: Path):
    brasyn = scripts / "brasyn"
    assert "fit-fusion" in run(brasyn, "--help", cwd=tmp_path)
    listed = run(brasyn, "configs", cwd=tmp_path)
    assert all(
        name in listed
        for name in ("configs/thesis/published/r3.yaml", "launch/several_nodes.yaml", "slurm/common.sh")
    )
    script = Path(run(brasyn, "configs", "--path", "train.sbatch", cwd=tmp_path).strip())
    assert script.is_file() and script.is_relative_to(scripts.parent)
    run(brasyn, "configs", "slurm", "segmenter.yaml", "--copy", "mine", cwd=tmp_path)
    assert (tmp_path / "mine/slurm/common.sh").is_file() and (
        tmp_path / "mine/configs/thesis/segmenter.yaml"
    ).is_file()
    made = run(scripts / "python", "-c", "import brasyn_dist; print(brasyn_dist.__file__)", cwd=tmp_path)
    assert Path(made.strip()).is_relative_to(scripts.parent)


def test_all_stages_outside_the_repository(scripts: Path, tmp_path: Path):
    brasyn = scripts / "brasyn"
    assert run(brasyn, "--version", cwd=tmp_path).strip() == f"brasyn_dist {brasyn_dist.__version__}"
    run(brasyn, "phantom", "cases", "--gli", "3", "--met", "0", "--shape", "48", "48", "40", cwd=tmp_path)
    run(brasyn, "shard", "cases/train_gli", "--out", "shards", "--minimum-foreground", "200", cwd=tmp_path)
    assert "segmenter" in run(brasyn, "train", "--config", "segmenter", "--dry-run", cwd=tmp_path)
    run(brasyn, "train", "--config", "r3", "data.shards=shards", *GENERATOR, *RUN, cwd=tmp_path)
    run(brasyn, "drop-modality", "cases/train_gli", "incomplete", cwd=tmp_path)
    run(
        brasyn,
        "infer",
        "--weights",
        "runs/r3",
        "--input",
        "incomplete",
        "--output",
        "completed",
        cwd=tmp_path,
    )
    done = run(
        brasyn, "evaluate", "--predictions", "completed", "--references", "cases/train_gli", "--out", "evaluation",
        cwd=tmp_path,
    )  # fmt: skip
    assert "best copy" in done and (tmp_path / "evaluation/report.html").is_file()
    made = run(scripts / "python", "-c", "import brasyn_dist; print(brasyn_dist.__file__)", cwd=tmp_path)
    assert Path(made.strip()).with_name("py.typed").is_file()
