"""The evaluation by its command: tables and report; every problem is listed."""

import csv
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.evaluate import main
from brasyn_dist.data.nifti import read_case, write_like
from brasyn_dist.evaluation.baselines import MEAN, baseline_volumes
from brasyn_dist.evaluation.tables import mean_of
from brasyn_dist.preprocessing.statistics import ModalityStatistics, Statistics
from tests.small import small_cases


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("cases") / "c", cases=4) / "train_gli"


@pytest.fixture
def predictions(references: Path, tmp_path: Path) -> Path:
    """The truth of case 0's t1c, of case 1's t2w with noise, and of case 2's t2f."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for number, (case, modality) in enumerate(zip(find_cases(references), ("t1c", "t2w", "t2f"))):
        volumes = read_case(case)
        array = volumes.images[MODALITIES.index(modality)].astype(float)
        if number == 1:
            array += np.random.default_rng(0).normal(0, 40, array.shape) * (array > 0)
        write_like(folder / f"{case.name}-{modality}.nii.gz", array, volumes.reference)
    return folder


def evaluate(predictions: Path, references: Path, out: Path, *more: str) -> int:
    return main(
        ["--predictions", str(predictions), "--references", str(references), "--out", str(out), *more]
    )


def rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "cases.csv").open() as file:
        return {(r["modality"], r["method"]): r for r in csv.DictReader(file)}


@pytest.mark.slow
def test_scores_baselines_and_report(predictions: Path, references: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert evaluate(predictions, references, out, "--workers", "2") == 0
    table = rows(out)
    # Three predictions: synthetic, mean, best copy, and the three copies that it is chosen from.
    assert len(table) == 18
    assert float(table["t1c", "synthetic"]["mae/brain"]) == 0
    assert float(table["t1c", "synthetic"]["ssim/tumour"]) == pytest.approx(1)
    # Mean absolute value of a normal variable of 40: 40 x sqrt(2 / pi).
    assert float(table["t2w", "synthetic"]["mae/brain"]) == pytest.approx(31.9, abs=1.5)
    assert float(table["t2w", "mean of available"]["mae/brain"]) > 32
    summary = json.loads((out / "summary.json").read_text())
    assert summary["means"]["all"]["synthetic"]["mae/brain"]["cases"] == 3 and not summary["problems"]
    report = (out / "report.html").read_text()
    assert (
        report.count("<article") == 3 and report.count("data:image/png;base64,") == 6 + 3 * 3 * 6
    )  # a typical case, then three in three planes
    assert "http://" not in report and "https://" not in report
    assert "best copy" in capsys.readouterr().out


@pytest.mark.usefixtures("no_report")
def test_problems_are_listed_and_the_rest_is_scored(
    predictions: Path, references: Path, tmp_path: Path, capsys
):
    case = find_cases(references)[0]
    (predictions / "nobody-t1c.nii.gz").write_bytes(b"x")
    (predictions / f"{case.name}-t2f.nii.gz").write_bytes(b"rubbish")
    shifted = nibabel.load(case.files["t1c"])
    affine = shifted.affine.copy()
    affine[0, 3] += 5
    type(shifted)(np.asarray(shifted.dataobj), affine).to_filename(predictions / f"{case.name}-t1n.nii.gz")
    assert evaluate(predictions, references, tmp_path / "out", "--no-baselines") == 1
    errors = capsys.readouterr().err
    for word in ("no case nobody", f"{case.name}-t2f", "affine"):
        assert word in errors
    problems = json.loads((tmp_path / "out/summary.json").read_text())["problems"]
    assert len(problems) == 3 and len(rows(tmp_path / "out")) == 3


def test_nothing_to_score_is_an_error(references: Path, tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    assert evaluate(tmp_path / "empty", references, tmp_path / "out") == 1
    assert "no prediction found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_report")
def test_a_case_without_segmentation_has_brain_scores_only(
    references: Path, predictions: Path, tmp_path: Path
):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(references, bare)
    for path in bare.glob("*/*-seg.nii.gz"):
        path.unlink()
    assert evaluate(predictions, bare, tmp_path / "out", "--no-baselines") == 0
    row = rows(tmp_path / "out")["t1c", "synthetic"]
    assert row["mae/brain"] != "" and row["mae/tumour"] == row["ssim/healthy"] == ""


def test_baselines_against_arithmetic():
    statistics = Statistics(
        {
            m: ModalityStatistics(1000.0 * (i + 1), 100.0 * (i + 1), 50.0 * (i + 1), 1)
            for i, m in enumerate(MODALITIES)
        }
    )
    a = np.array([[[0, 0, 150, 200, 5000]]])
    b = np.array([[[0, 300, 0, 300, 300]]])
    volumes = baseline_volumes({"t1c": a, "t1n": b}, "t2f", statistics)
    # t1c 200 is z = 2, t2f = 300 + 2 x 150; t1n 300 is z = 1, t2f = 450; both background only in the first voxel.
    assert volumes["copy of t1c"][0, 0, 3] == 600 and volumes["copy of t1n"][0, 0, 3] == 450
    assert volumes[MEAN][0, 0, 3] == 525 and volumes[MEAN][0, 0, 0] == 0
    assert volumes["copy of t1c"][0, 0, 4] == pytest.approx(
        3000
    )  # clipped at 1000 (z = 18), then at t2f's own maximum
    alone = baseline_volumes({"t1c": a}, "t2f", statistics)
    assert alone[MEAN][0, 0, 1] == 0 and alone[MEAN][0, 0, 2] == 450


def test_confidence_interval_is_students():
    from scipy import stats

    values = [1.0, 2.0, 4.0, 7.0]
    mean = mean_of(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean.low, mean.high) == pytest.approx((low, high))
    assert np.isnan(mean_of([3.0]).low) and mean_of([1.0, np.nan, 3.0]).cases == 2


SEGMENT_BY_THRESHOLD = """
import sys, nibabel, numpy as np
image = nibabel.load(sys.argv[1])
array = np.asarray(image.dataobj)
labels = np.where(array > 0.8 * array.max(), 3, 0).astype(np.uint8)
nibabel.save(nibabel.Nifti1Image(labels, image.affine), sys.argv[2])
"""


def test_pseudo_references_are_made_of_the_complete_real_cases(
    predictions: Path, references: Path, tmp_path: Path, capsys
):
    """The truth as prediction has Dice 1 with pseudo-labels, whatever the reference segmentation says."""
    (tmp_path / "segment.py").write_text(SEGMENT_BY_THRESHOLD)
    command = ("--segment-command", f"{sys.executable} {tmp_path / 'segment.py'} {{t1c}} {{output}}")
    dice = {}
    for kind in ("given", "pseudo"):
        out = tmp_path / kind
        assert (
            evaluate(
                predictions, references, out, "--no-baselines", *command, "--reference-segmentation", kind
            )
            == 0
        )
        dice[kind] = float(rows(out)["t1c", "synthetic"]["dice/ET"])
        summary = json.loads((out / "summary.json").read_text())
        assert summary["reference_segmentation"] == kind
        assert summary["cohorts"]["GLI"]["t1c"]["synthetic"]["mae/brain"]["cases"] == 1
        assert ("pseudo-labels" in (out / "report.html").read_text()) == (kind == "pseudo")
    assert dice["pseudo"] == 1 > dice["given"]
    with pytest.raises(SystemExit):
        evaluate(predictions, references, tmp_path / "x", "--reference-segmentation", "pseudo")
    assert "needs --segmenter" in capsys.readouterr().err
