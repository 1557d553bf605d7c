"""Every case is left out once, with its patient; all stages on small phantom cases to the pooled table."""

import json
from pathlib import Path

import pytest

from brasyn_dist.brats import MODALITIES, Case, find_cases
from brasyn_dist.cli.cross_validate import main, split_into_folds
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.errors import ConfigError
from brasyn_dist.evaluation.tables import BEST_COPY, METHODS, read_table
from tests.docs.reduced import GENERATOR, RUN
from tests.small import small_cases

NAMES = [f"BraTS-GLI-{patient:05d}-{time:03d}" for patient in range(7) for time in range(1 + patient % 2)]
CASES = [Case(name, Path(name)) for name in NAMES]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_case_is_left_out_once_together_with_its_patient(seed: int):
    folds = split_into_folds(CASES, 3, seed)
    assert sorted(c.name for fold in folds for c in fold) == NAMES
    patients = [{c.patient for c in fold} for fold in folds]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 7
    assert {len(p) for p in patients} == {2, 3}
    assert split_into_folds(CASES[::-1], 3, seed) == [[c for c in CASES[::-1] if c in fold] for fold in folds]


def test_another_seed_gives_other_folds():
    assert split_into_folds(CASES, 3, 0) != split_into_folds(CASES, 3, 1)


@pytest.mark.parametrize("folds", [1, 8])
def test_impossible_numbers_of_folds_are_refused(folds: int):
    with pytest.raises(ConfigError, match="from 2 to 7"):
        split_into_folds(CASES, folds, 0)


def test_options_that_differ_between_folds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "name=mine"]) == 1
    assert "name: set for every fold by the command; leave it out" in capsys.readouterr().err


@pytest.mark.slow
def test_from_cases_to_the_pooled_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    cases, out = small_cases(tmp_path / "c", cases=5) / "train_gli", tmp_path / "out"
    command = [
        str(cases),
        "--out",
        str(out),
        "--folds",
        "2",
        "--minimum-foreground",
        "200",
        "--config",
        "narrow",
        *GENERATOR,
        *RUN,
    ]
    assert main([*command, "--fold", "2"]) == 1 and "--fold 2: from 0 to 1" in capfd.readouterr().err
    assert main([*command, "--fold", "1"]) == 0
    assert (out / "fold-1/evaluation/cases.csv").exists()
    assert not (out / "fold-0").exists() and not (out / "cases.csv").exists()
    assert main(command) == 0
    assert "All folds: 4 cases" in capfd.readouterr().out
    names = {c.name for c in find_cases(cases)}
    for fold in range(2):
        held_out = set(read_table(out / f"fold-{fold}" / "evaluation").case)
        table = open_shard_set(out / f"fold-{fold}" / "shards").header.cases
        assert len(held_out) == 2 and {c.name for c in table if c.split == "train"} == names - held_out
    rows = read_table(out).fillna(-1)
    for modality in MODALITIES:
        target = rows[rows.modality == modality]
        for method in METHODS:
            assert sorted(target[target.method == method].case) == sorted(names)
        best = target[target.method == BEST_COPY].drop(columns="method")
        copies = target[target.method.str.startswith("copy of")].groupby("method")
        equal = [
            name
            for name, copy in copies
            if copy.drop(columns="method").to_numpy().tolist() == best.to_numpy().tolist()
        ]
        assert len(equal) == 1, "the best copy is one for all folds"
    means = json.loads((out / "summary.json").read_text())["means"]
    assert means["all"]["synthetic"]["mae/brain"]["cases"] == 4 * len(MODALITIES)
