"""Fixtures shared by all tests, and the division of the tests over the workers of pytest-xdist."""

import os
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: workers and the processes of runs share the cores

REPOSITORY = Path(__file__).resolve().parents[1]


def work_unit(nodeid: str) -> str:
    """Tests that one worker executes, in their order: those of a file, or all of tests/slurm, which share a Slurm."""
    file = nodeid.split("::")[0]
    return "tests/slurm" if file.startswith("tests/slurm/") else file


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several workers, units with many slow tests come first, so that the workers end at about the same time."""
    if hasattr(config, "workerinput"):
        slow = Counter(work_unit(item.nodeid) for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[work_unit(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class UnitScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return work_unit(nodeid)

    config.option.loadscopereorder = False  # pytest_collection_modifyitems has ordered the units
    return UnitScheduling(config, log)


def shared_dir() -> Path:
    """Folder with the real subjects and reference outputs; never part of the repository."""
    return Path(os.environ.get("BRASYN_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations in this process write no report, which takes as long as the scores; tests/report tests it."""
    monkeypatch.setattr("brasyn_dist.report.evaluation_report.write_report", lambda *_: None)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_dir()
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set BRASYN_SHARED to the folder with data/ and reference/")
    return folder
