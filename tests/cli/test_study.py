"""The study: order of its stages, options by task, Slurm jobs; on phantoms at reduced width all of it."""

import csv
import os
import re
import shlex
import stat
from pathlib import Path

import pytest

from brasyn_dist.cli.study import main
from tests.small import small_cases
from tests.test_runs import COMMON, GENERATOR, SEGMENTER

REDUCED = (*(o for o in COMMON if not o.startswith("data.shards")), *GENERATOR, *SEGMENTER)
SHARD_OPTIONS = "--shard-options=--minimum-foreground 200 --samples-per-shard 20"
EVALUATED = ("r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8_axial", "r8_sagittal", "r9", "r10")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("study") / "data")


def printed(capsys: pytest.CaptureFixture, *words: str) -> list[list[str]]:
    """Words of each command that the study prints."""
    assert main([*words, "--dry-run"]) == 0
    return [shlex.split(line.removeprefix("$ ")) for line in capsys.readouterr().out.splitlines()]


def test_every_run_comes_after_those_that_it_needs(data: Path, tmp_path: Path, capsys):
    lines = printed(capsys, "configs/thesis", "--data", str(data), "--out", str(tmp_path / "out"))
    stages = [line[1] for line in lines]
    assert stages[0] == "shard" and stages[-1] == "table"
    trained = [Path(line[3]).stem for line in lines if line[1] == "train"]
    assert sorted(trained) == ["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "segmenter"]
    assert trained.index("r6") > trained.index("r3") and trained.index("r6") > trained.index("segmenter")
    assert tuple(word.split("=")[0] for word in lines[-1][2:-2]) == EVALUATED
    assert sum("--segmenter" in line for line in lines) == len(EVALUATED)
    assert not (tmp_path / "out").exists()


def test_published_variants_start_from_their_own_runs(data: Path, tmp_path: Path, capsys):
    words = ("thesis/published", "--data", str(data), "--out", str(tmp_path), "--only", "r6")
    trained = [line[3] for line in printed(capsys, *words) if line[1] == "train"]
    assert [re.sub(r".*/configs/", "", path) for path in trained] == [
        "thesis/published/r3.yaml", "thesis/segmenter.yaml", "thesis/published/r6.yaml",
    ]  # fmt: skip


def test_overrides_go_to_the_runs_that_have_them(data: Path, tmp_path: Path, capsys):
    words = (
        "thesis",
        "--data",
        str(data),
        "--out",
        str(tmp_path),
        "--only",
        "r6",
        *SEGMENTER,
        *GENERATOR[1:2],
    )
    options = {Path(line[3]).stem: line[5:] for line in printed(capsys, *words) if line[1] == "train"}
    assert options == {"r3": [GENERATOR[1]], "r6": [GENERATOR[1]], "segmenter": list(SEGMENTER)}
    assert main([*words, "generator.width=3", "--dry-run"]) == 1
    assert "unknown option generator.width" in capsys.readouterr().err


def test_another_source_of_segmentations_replaces_the_segmenter(data: Path, tmp_path: Path, capsys):
    words = ("thesis", "--data", str(data), "--out", str(tmp_path), "--only", "r2")
    lines = printed(capsys, *words, "--evaluate-options=--segmentations somewhere")
    assert [line[1] for line in lines] == ["shard", "train", "infer", "evaluate", "table"]


def test_unknown_names_are_refused(data: Path, tmp_path: Path, capsys):
    assert main(["thesis", "--data", str(data), "--out", str(tmp_path), "--only", "r77", "--dry-run"]) == 1
    assert "no file r77.yaml" in capsys.readouterr().err


def test_slurm_jobs_wait_for_those_that_they_need(data: Path, tmp_path: Path, monkeypatch, capsys):
    """A stand-in for sbatch records its arguments and counts the jobs."""
    program = tmp_path / "bin/sbatch"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/jobs.txt\nwc -l < {tmp_path}/jobs.txt | tr -d " "\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out"
    words = ["thesis", "--data", str(data), "--out", str(out), "--slurm", "--only", "r6"]
    assert main([*words, "--sbatch=--account=lab", "--sbatch-train=--nodes=4"]) == 0
    numbers = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    lines = (tmp_path / "jobs.txt").read_text().splitlines()
    jobs = {name.strip(): lines[int(number) - 1] for name, number in numbers.items()}
    assert list(jobs) == [
        "shard", "train r3", "train segmenter", "train r6", "infer r6", "evaluation r6", "table",
    ]  # fmt: skip
    assert all("--account=lab" in job and f"--chdir {out}" in job for job in jobs.values())
    assert "afterok:1:2:3 " in jobs["train r6"] and "--nodes=4" in jobs["train r6"]
    assert "--nodes" not in jobs["infer r6"] and "afterok:4 " in jobs["infer r6"]
    assert "--wrap" in jobs["table"] and "brasyn_dist table r6=" in jobs["table"]
    assert len(list((out / "dropped").glob("BraTS-*"))) == len(list((out / "references").iterdir())) > 0


@pytest.mark.slow
def test_a_study_of_two_views_fused_runs_and_the_runs_that_they_need_on_phantoms(data: Path, tmp_path: Path):
    """Two updates each of R3, the segmenter, R6, R7 and R8; the table has a column for each evaluation.

    tests/test_runs.py trains all runs.
    """
    cases = tmp_path / "cases"
    cases.mkdir()
    for cohort in data.iterdir():  # one of each kind
        case = min(cohort.iterdir())
        (cases / case.name).symlink_to(case, target_is_directory=True)
    words = ["thesis", "--data", str(data), "--cases", str(cases), "--out", str(tmp_path), SHARD_OPTIONS]
    words += ["--only", "r8", "--only", "r9"]
    evaluated = ("r8_axial", "r8_sagittal", "r9")
    assert main([*words, "--evaluate-options=--no-baselines", *REDUCED]) == 0
    with (tmp_path / "table/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[3:] == evaluated
    known = {(r["metric"], r["validation set"], r["class"]) for r in rows if all(r[n] for n in evaluated)}
    for cohort in ("ALL", "GLI", "MET"):
        assert {("SSIM (challenge) %", cohort, "WT"), ("Dice %", cohort, "ET")} <= known
    assert (tmp_path / "table/table.tex").exists()
