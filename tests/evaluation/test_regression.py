"""The linear baseline against numpy's lstsq on the voxels themselves, and as its user gets it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.evaluate import main
from brasyn_dist.data.nifti import read_case, write_like
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.baselines import REGRESSION, Regression, fit_regression, gram_matrix
from brasyn_dist.preprocessing.statistics import PUBLISHED, ModalityStatistics, Statistics
from tests.small import small_cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("cases") / "c", cases=5) / "train_gli"


def design(folder: Path) -> np.ndarray:
    """(voxels, 4) z-scores of all cases, those voxels of which at most one modality is background; in NumPy."""
    columns = []
    for case in find_cases(folder):
        images = read_case(case).images.reshape(4, -1).astype(float)
        images = images[:, (images > 0).sum(0) >= 3]
        entries = [PUBLISHED.modalities[m] for m in MODALITIES]
        columns.append(
            np.stack([(np.minimum(v, e.clip_max) - e.mean) / e.std for v, e in zip(images, entries)], 1)
        )
    return np.concatenate(columns)


@pytest.mark.parametrize(
    ("available", "target"),
    [
        (("t1c", "t2f", "t2w"), "t1n"),
        (("t1n", "t2f", "t2w"), "t1c"),
        (("t2w", "t1c"), "t2f"),
        (("t1n",), "t2w"),
    ],
)
def test_weights_equal_lstsq_on_all_voxels(cases: Path, available: tuple[str, ...], target: str):
    scores = design(cases)
    inputs = np.stack([np.ones(len(scores)), *(scores[:, MODALITIES.index(m)] for m in available)], 1)
    expected = np.linalg.lstsq(inputs, scores[:, MODALITIES.index(target)], rcond=None)[0]
    fitted = fit_regression(find_cases(cases), PUBLISHED)
    assert fitted.voxels == len(scores)
    np.testing.assert_allclose(fitted.weights(available, target), expected, rtol=1e-7, atol=1e-9)


def test_workers_and_order_do_not_matter(cases: Path):
    found = find_cases(cases)
    one, two = fit_regression(found, PUBLISHED), fit_regression(found[::-1], PUBLISHED, workers=2)
    np.testing.assert_array_equal(one.gram, two.gram)
    assert one.cases == two.cases == tuple(c.name for c in found)


def test_prediction_in_the_units_of_the_files():
    """t2w = 3 x t1c + 10 exactly: the fit finds it, clips at the target's maximum, and keeps the background rule."""
    statistics = Statistics(
        {m: ModalityStatistics(2000.0, 100.0 + i, 50.0 + i, 1) for i, m in enumerate(MODALITIES)}
    )
    rng = np.random.default_rng(0)
    images = rng.integers(1, 600, (4, 9, 9, 9))
    images[3] = 3 * images[0] + 10
    fitted = Regression(gram_matrix(images, statistics), MODALITIES, ("a",), statistics.hash)
    others = {m: images[i].copy() for i, m in enumerate(MODALITIES[:3])}
    others["t1c"][0, 0, 0], others["t1n"][0, 0, 0] = 0, 0
    others["t1c"][1, 0, 0] = 900
    volume = fitted.predict(others, "t2w", statistics)
    assert volume[0, 0, 0] == 0 and volume[1, 0, 0] == 2000
    np.testing.assert_allclose(volume[2:], images[3, 2:], atol=1e-3)


@pytest.mark.usefixtures("no_report")
def test_evaluation_has_it_as_a_method_and_keeps_the_fit(cases: Path, tmp_path: Path, capsys):
    case = find_cases(cases)[0]
    volumes = read_case(case)
    (tmp_path / "predictions").mkdir()
    write_like(tmp_path / f"predictions/{case.name}-t1n.nii.gz", volumes.images[1], volumes.reference)
    paths = ["--predictions", str(tmp_path / "predictions"), "--references", str(cases)]
    assert main([*paths, "--out", str(tmp_path / "a"), "--regression-cases", str(cases)]) == 0
    assert f"fitted on evaluated cases: {case.name}" in capsys.readouterr().err
    fitted = tmp_path / "a/regression.json"
    assert main([*paths, "--out", str(tmp_path / "b"), "--regression", str(fitted)]) == 0
    tables = []
    for name in "ab":
        with (tmp_path / name / "cases.csv").open() as file:
            tables.append({r["method"]: r for r in csv.DictReader(file)})
    assert tables[0] == tables[1] and REGRESSION in tables[0]
    errors = {m: float(r["mae/brain"]) for m, r in tables[0].items()}
    assert 0 < errors[REGRESSION] < errors["best copy"]
    assert json.loads((tmp_path / "b/summary.json").read_text())["means"]["t1n"][REGRESSION]
    assert REGRESSION in capsys.readouterr().out


def test_a_fit_of_other_statistics_or_a_damaged_file_is_refused(cases: Path, tmp_path: Path):
    fit_regression(find_cases(cases)[:1], PUBLISHED).save(tmp_path / "r.json")
    other = Statistics({m: ModalityStatistics(9.0, 1.0, 1.0, 1) for m in MODALITIES})
    with pytest.raises(DataError, match="other statistics"):
        Regression.load(tmp_path / "r.json", other)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(DataError, match="no fitted regression"):
        Regression.load(tmp_path / "r.json", PUBLISHED)
