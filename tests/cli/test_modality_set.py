"""A study of other modalities than BraTS': sharding, training, inference and evaluation by the commands."""

import json
import shutil
from pathlib import Path

import pytest

from brasyn_dist.cli.cross_validate import main as cross_validate
from brasyn_dist.cli.demo import main as demo
from brasyn_dist.cli.drop_modality import main as drop_modality
from brasyn_dist.cli.evaluate import main as evaluate
from brasyn_dist.cli.infer import main as infer
from brasyn_dist.cli.shard import main as shard
from brasyn_dist.cli.train import main as train
from tests.small import small_cases

SMALL = (
    "training.max_steps=2", "training.updates_per_batch=1", "training.global_batch_size=2", "generator.image_size=48",
    "discriminator.image_size=48", "generator.base_channels=8", "generator.heads=2", "generator.transformer_layers=1",
    "discriminator.base_channels=8", "validation.every_steps=2", "validation.slices=2", "objective.ssim_regions=whole",
    "telemetry.report=false", "runtime.threads=1",
)  # fmt: skip


def ct_and_mr(folder: Path, source: Path) -> Path:
    """Cases S-0, S-1, ... with the files CASE-ct.nii.gz and CASE-mr.nii.gz, and no segmentation."""
    for number, case in enumerate(sorted(source.glob("*/*"))):
        target = folder / f"S-{number}"
        target.mkdir(parents=True)
        for brats, name in (("t1c", "ct"), ("t2w", "mr")):
            shutil.copy(case / f"{case.name}-{brats}.nii.gz", target / f"{target.name}-{name}.nii.gz")
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return ct_and_mr(tmp_path / "cohort", small_cases(tmp_path / "source", 4))


@pytest.fixture
def set_file(tmp_path: Path) -> Path:
    path = tmp_path / "set.yaml"
    path.write_text("name: ctmr\nmodalities: [ct, mr]\n")
    return path


UNET = ("generator.image_size=48", "augmentation.crop=[32,32]", "generator.widths=[16,32]", "training.max_steps=2",
        "checkpoint.every_steps=1", "runtime.threads=1", "telemetry.report=false")  # fmt: skip


def test_one_modality_of_each_case_is_dropped(cohort: Path, set_file: Path, tmp_path: Path):
    words = [str(cohort), str(tmp_path / "out"), "--modality-set", str(set_file)]
    assert drop_modality(words) == 0
    dropped = json.loads((tmp_path / "out/dropped.json").read_text())
    assert set(dropped.values()) == {"ct", "mr"}
    for case, modality in dropped.items():
        (kept,) = {"ct", "mr"} - {modality}
        assert [p.name for p in (tmp_path / "out" / case).iterdir()] == [f"{case}-{kept}.nii.gz"]
    assert drop_modality([*words, "--modality", "t2f"]) == 1


@pytest.mark.slow
def test_cross_validation(cohort: Path, set_file: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = ["--modality-set", str(set_file), "--folds", "2", "--minimum-foreground", "100"]
    assert cross_validate([str(cohort), "--out", str(out), *options, *UNET]) == 0
    rows = (out / "cases.csv").read_text().splitlines()
    for modality in ("ct", "mr"):
        assert sum(f",{modality},synthetic," in row for row in rows) == 4


@pytest.mark.slow
def test_demo(set_file: Path, tmp_path: Path):
    cohort = ct_and_mr(tmp_path / "cohort", small_cases(tmp_path / "source", 3, (96, 96, 32)))
    out = tmp_path / "demo"
    options = ["--modality-set", str(set_file), "--kill-at", "0", *UNET, "generator.image_size=96"]
    assert demo(["--data", str(cohort), "--out", str(out), *options]) == 0
    assert {p.name.rpartition("-")[2] for p in out.glob("predictions/*.gz")} == {"ct.nii.gz", "mr.nii.gz"}


def test_two_modalities_with_other_names(
    cohort: Path, set_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards, runs, out = tmp_path / "shards", tmp_path / "runs", tmp_path / "out"
    options = [
        "--views",
        "axial",
        "--minimum-foreground",
        "100",
        "--validation-fraction",
        "0.4",
        "--workers",
        "1",
    ]
    assert shard([str(cohort), "--out", str(shards), "--modality-set", str(set_file), *options]) == 0
    assert train(["name=ctmr", f"runs_dir={runs}", f"data.shards={shards}", *SMALL]) == 0
    metrics = [json.loads(line) for line in (runs / "ctmr/metrics.jsonl").read_text().splitlines()]
    assert {"ct/mae", "mr/mae"} <= set(metrics[-1])
    exported = json.loads((runs / "ctmr/export/config.json").read_text())
    assert exported["modality_set"]["modalities"] == ["ct", "mr"]
    for path in cohort.glob("*/*-mr.nii.gz"):
        path.rename(tmp_path / path.name)
    assert infer(["--weights", str(runs / "ctmr"), "--input", str(cohort), "--output", str(out)]) == 0
    cases = {folder.name for folder in cohort.iterdir()}
    assert {p.name for p in out.glob("*.nii.gz")} == {f"{case}-mr.nii.gz" for case in cases}
    for case in cases:
        (tmp_path / f"{case}-mr.nii.gz").rename(cohort / case / f"{case}-mr.nii.gz")
    results = tmp_path / "evaluation"
    arguments = ["--predictions", str(out), "--references", str(cohort), "--out", str(results)]
    assert evaluate([*arguments, "--statistics", str(shards / "statistics.json")]) == 0
    rows = (results / "cases.csv").read_text().splitlines()
    for method in ("synthetic", "mean of available", "copy of ct"):
        assert sum(f",mr,{method}," in row for row in rows) == len(cases)
    assert evaluate(arguments) == 1
    assert "the published statistics have no ct, mr" in capsys.readouterr().err


def test_an_invalid_modality_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "set.yaml").write_text("name: one\nmodalities: [ct]\n")
    arguments = [
        str(tmp_path),
        "--out",
        str(tmp_path / "shards"),
        "--modality-set",
        str(tmp_path / "set.yaml"),
    ]
    assert shard(arguments) == 1
    assert "set.yaml: modality set one" in capsys.readouterr().err
