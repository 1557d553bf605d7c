"""The plan of ablations runs once, in any number of processes, and its table compares the same volumes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brasyn_dist.cli import ablate
from brasyn_dist.evaluation.baselines import MEAN
from brasyn_dist.evaluation.scoring import SYNTHETIC
from brasyn_dist.evaluation.tables import table_csv
from tests.conftest import REPOSITORY

PLAN = "one: [a.b=1]\ntwo words: [a.c=2, d=3]\n"


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """Commands that were called; each writes an evaluation with MAE = length of the run's name + fold."""
    made: list[list[str]] = []

    def call(command: list[str]) -> None:
        made.append(command)
        out, fold = Path(command[command.index("--out") + 1]), int(command[command.index("--fold") + 1])
        folder = out / f"fold-{fold}/evaluation"
        folder.mkdir(parents=True)
        rows = [
            {
                "case": f"case-{fold}",
                "cohort": "",
                "modality": "t1n",
                "method": method,
                "mae/brain": mae,
                "psnr/brain": 10.0,
                "ssim/healthy": np.nan,
            }
            for method, mae in ((SYNTHETIC, float(len(out.name) + fold)), (MEAN, 99.0))
        ]
        (folder / "cases.csv").write_text(table_csv(pd.DataFrame(rows)))

    monkeypatch.setattr(ablate, "call", call)
    return made


def command(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "plan.yaml").write_text(PLAN)
    return [
        "cases",
        "--out",
        str(tmp_path / "out"),
        "--plan",
        str(tmp_path / "plan.yaml"),
        "--folds",
        "3",
        *more,
    ]


def test_every_run_and_fold_once_and_then_the_table(tmp_path: Path, calls):
    assert ablate.main(command(tmp_path, "--fold", "0", "--fold", "2", "training.max_steps=5")) == 0
    names = ["base", "one", "two-words"]
    assert [(Path(c[c.index("--out") + 1]).name, c[c.index("--fold") + 1]) for c in calls] == [
        (name, fold) for name in names for fold in ("0", "2")
    ]
    assert [c[-3:] for c in calls[::2]] == [
        ["--fold", "0", "training.max_steps=5"],
        ["0", "training.max_steps=5", "a.b=1"],
        ["training.max_steps=5", "a.c=2", "d=3"],
    ]
    base, one, two = (tmp_path / "out/ablations.md").read_text().splitlines()[2:5]
    # Lengths 4, 3 and 9; folds 0 and 2 add 1 on average.
    assert base.split(" | ")[2:5] == ["2", "5", "10"] and base.split(" | ")[6:] == ["", "", " |"]
    assert one.startswith("| one | a.b=1 | 2 | 4 | 10 |") and "| -1.000 ± 0.000 | 0.000 ± 0.000 |" in one
    assert two.startswith("| two words | a.c=2, d=3 | 2 | 10 |") and "| 5.00 ± 0.00 |" in two
    assert ablate.main(command(tmp_path, "--fold", "0", "--fold", "2", "training.max_steps=5")) == 0
    assert len(calls) == 6, "what is done is not done again"


def test_other_options_are_not_mixed_in(tmp_path: Path, calls, capsys):
    assert ablate.main(command(tmp_path, "--only", "one", "training.max_steps=5")) == 0
    assert ablate.main(command(tmp_path, "--only", "one", "training.max_steps=6")) == 1
    assert "one was made with other options" in capsys.readouterr().err and len(calls) == 3


def test_runs_are_spread_over_processes(tmp_path: Path, calls):
    assert ablate.main(command(tmp_path, "--fold", "1", "--only", "two words")) == 0
    assert len(calls) == 1
    text = (tmp_path / "out/ablations.md").read_text()
    assert "two words" in text and "| base" not in text
    assert ablate.main(command(tmp_path, "--fold", "1")) == 0
    assert len(calls) == 3


@pytest.mark.parametrize(
    "plan, only, message",
    [
        ("one: a.b=1", [], "one: a list of section.key=value is expected"),
        ("one: [a]", [], "one: a list of section.key=value is expected"),
        (PLAN, ["--only", "three"], "no run is called 'three'; there are base, one, two words"),
    ],
)
def test_plans_that_are_none(tmp_path: Path, calls, capsys, plan: str, only: list[str], message: str):
    arguments = command(tmp_path, *only)
    (tmp_path / "plan.yaml").write_text(plan)
    assert ablate.main(arguments) == 1
    assert message in capsys.readouterr().err and not calls


@pytest.mark.parametrize("config, plan", [("laptop", "ablations"), ("narrow", "ablations_narrow")])
def test_the_plans_in_the_repository_change_what_exists(config: str, plan: str):
    from brasyn_dist.config import load_config

    found = ablate.read_plan(REPOSITORY / f"configs/{plan}.yaml")
    path = REPOSITORY / f"configs/{config}.yaml"
    base = load_config(path, [])
    assert len(found) > 5
    for name, changed in found.items():
        assert (load_config(path, changed) == base) == (name == "base"), name
