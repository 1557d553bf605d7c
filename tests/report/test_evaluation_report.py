"""The report of an evaluation: its sections and values, also of incomplete evaluations."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brasyn_dist.brats import BRATS, MODALITIES, find_cases
from brasyn_dist.cli.evaluate import main
from brasyn_dist.data.nifti import read_case, write_like
from brasyn_dist.evaluation.scoring import CaseScores, Prediction
from brasyn_dist.evaluation.tables import score_table, summarise
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.report.case_views import at_least, busiest_slices, contour_path, outline_layer
from brasyn_dist.report.evaluation_report import write_report
from brasyn_dist.report.score_tables import best_baseline, distributions, metric_table, overview, title_of
from tests.report.checked import Page, checked
from tests.small import small_cases

CASES = 5


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cases(tmp_path_factory.mktemp("cases") / "c", cases=CASES + 1) / "train_gli"


def predict(folder: Path, references: Path, count: int) -> Path:
    """Predictions of `count` cases, each worse than the one before it."""
    folder.mkdir()
    for number, case in enumerate(find_cases(references)[:count]):
        modality = MODALITIES[number % 2]
        volumes = read_case(case)
        array = volumes.images[MODALITIES.index(modality)].astype(float)
        array += np.random.default_rng(0).normal(0, 20 * (number + 1), array.shape) * (array > 0)
        write_like(folder / f"{case.name}-{modality}.nii.gz", array, volumes.reference)
    return folder


@pytest.fixture(scope="module")
def predictions(references: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predict(tmp_path_factory.mktemp("predictions") / "p", references, CASES)


def evaluate(predictions: Path, references: Path, out: Path, *more: str) -> tuple[int, Page]:
    words = ["--predictions", predictions, "--references", references, "--out", out, *more]
    return main([str(w) for w in words]), checked(out / "report.html")


@pytest.mark.slow
def test_sections_values_and_pictures(predictions: Path, references: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r3"
    run.mkdir(parents=True)
    lines = [{"step": s, "kind": "train", "epoch": s / 9, "reconstruction": 1.0 / s} for s in range(1, 9)]
    lines += [{"step": 8, "kind": "validation", "mae": 0.125, "t1c/mae": 0.25}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {"git_commit": "abc123", "versions": {"torch": "9.9"}, "processes": 4}
    (run / "environment.json").write_text(json.dumps(environment))
    shutil.copytree(predictions, tmp_path / "p")
    lone = find_cases(references)[CASES - 1].name
    manifest = {
        "format": "brasyn_dist.predictions",
        "format_version": 1,
        "finished": True,
        "identity": {"members": [{"view": "axial", "weights_sha256": "f00d"}], "precision": "no", "fusion_sha256": "beef"},
        "details": {"weights": ["runs/r3"]},
        "cases": [
            {"case": lone, "status": "done", "available": ["t2w"], "targets": [MODALITIES[(CASES - 1) % 2]]}
        ],
    }  # fmt: skip
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    status, page = evaluate(tmp_path / "p", references, tmp_path / "out", "--curves", str(run))
    assert status == 0
    assert page.titles() == ["Scores", "Distributions", "Cases", "Data", "Training", "Provenance"]
    means = json.loads((tmp_path / "out" / "summary.json").read_text())["means"]
    for value in (
        f"{means['all']['synthetic']['mae/brain']['mean']:.2f}",
        f"{means['t1c']['synthetic']['psnr/brain']['mean']:.2f}",
        f"{means['t1n']['mean of available']['ssim/healthy']['mean']:.3f}",
    ):
        assert value in page.text(), value
    charts = [s["aria-label"] for s in page.all("svg") if s.get("role") == "img"]
    for name in ("MAE, brain", "MAE, tumour", "PSNR, healthy", "SSIM, tumour", "Challenge SSIM, healthy"):
        assert any(label.startswith(f"{name}. ") for label in charts), name
    assert any("T1 native, synthetic: mean" in label and "2 cases" in label for label in charts)
    # The worst two, the worst of them first; then the best two.
    with (tmp_path / "out" / "cases.csv").open() as file:
        ours = [r for r in csv.DictReader(file) if r["method"] == "synthetic"]
    order = [r["case"] for r in sorted(ours, key=lambda r: float(r["psnr/brain"]))]
    headings = [t for t in page.titles("h3") if t.startswith(": synthetic") or "synthetic T1" in t]
    assert [h.split(":")[0] for h in headings] == [order[0], order[1], order[-1], order[-2]]
    assert [t for tag, t in page.texts if tag == "span" and t in ("worst", "best")] == [
        "worst",
        "worst",
        "best",
        "best",
    ]
    alts = [i["alt"] for i in page.all("img")]
    # First an axial plane of a typical case: three inputs, target, synthetic, difference.
    opening, alts = alts[:6], alts[6:]
    assert all("axial" in alt for alt in opening) and opening[-1].startswith("Synthetic minus real")
    # Then three planes of four cases: target, synthetic, difference, and the inputs: three, or those in the manifest.
    assert len(alts) == 3 * ((3 + 1) + 3 * (3 + 3))
    for word in ("axial", "sagittal", "coronal"):
        assert sum(word in alt for alt in alts) == len(alts) / 3
    assert sum(alt.startswith("Input T2-weighted") for alt in alts) == 12
    assert sum(alt.startswith("Synthetic minus real") for alt in alts) == 12
    outlines = [s for s in page.all("svg") if s.get("aria-hidden")]
    assert len(outlines) == 3 + 3 * 12 and any(p.get("stroke") == "#ffc400" for p in page.all("path"))
    text = page.text()
    for fact in (
        "abc123",
        "torch 9.9",
        "axial view, weights f00d",
        "beef",
        "report written by",
        "The run r3",
    ):
        assert fact in text, fact
    assert "Not scored" not in text


def test_problems_come_first_and_the_rest_is_there(
    predictions: Path, references: Path, tmp_path: Path
) -> None:
    shutil.copytree(predictions, tmp_path / "p")
    (tmp_path / "p" / "nobody-t1c.nii.gz").write_bytes(b"x")
    status, page = evaluate(tmp_path / "p", references, tmp_path / "out", "--no-baselines")
    assert status == 1
    assert page.titles()[0] == "Not scored: 1" and "no case nobody" in page.text()
    assert "has no manifest.json" in page.text()
    assert len(page.all("article")) == 4


def test_a_single_case_without_labels(references: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(find_cases(references)[0].folder, bare / find_cases(references)[0].name)
    for path in bare.glob("*/*-seg.nii.gz"):
        path.unlink()
    predict(tmp_path / "p", bare, 1)
    status, page = evaluate(tmp_path / "p", bare, tmp_path / "out")
    assert status == 0
    assert [a["class"] for a in page.all("article")] == ["case"] and "only" in [t for _, t in page.texts]
    assert len(page.all("img")) == 6 + 3 * 6 and not [s for s in page.all("svg") if s.get("aria-hidden")]
    text = page.text()
    assert "1 synthetic volume of 1 case," in text
    assert "All targets" not in text  # one target alone
    assert "±" not in "".join(t for tag, t in page.texts if tag == "td")
    assert "nan" not in text.lower().replace("contrast-enhanced", "").split()


# ---- parts


def scores(case: str, modality: str, methods: dict[str, dict[str, float | None]]) -> CaseScores:
    return CaseScores(Prediction(Path(f"{case}-{modality}.nii.gz"), case, modality), "c", methods)


def table_of(methods: dict[str, list[float]], name: str = "mae/brain") -> pd.DataFrame:
    """Scores of one target: values of the cases by method. The copy is the best copy."""
    count = len(next(iter(methods.values())))
    return score_table(
        scores(f"case{i}", "t1c", {m: {name: v[i], "mae/tumour": None} for m, v in methods.items()})
        for i in range(count)
    )


def some_page(tmp_path: Path, table: pd.DataFrame, modality_set: ModalitySet = BRATS) -> Page:
    """The report of a table without cases to show."""
    write_report(tmp_path / "r.html", [], table, {}, tmp_path, modality_set=modality_set)
    return checked(tmp_path / "r.html")


def test_any_scores_are_shown_segmentations_apart(tmp_path: Path) -> None:
    some = score_table(
        scores(f"case{i}", m, {"synthetic": {"mae/brain": 5.0, "dice/ET": 0.5 + i / 10, "hd95/WT": 3.25}})
        for i in range(2)
        for m in ("t1c", "t2w")
    )
    page = some_page(tmp_path, some)
    assert "Segmentations of the completed cases" in page.titles("h3")
    assert {"Dice", "HD95"} <= set(page.titles("th")) and {"ET", "WT"} <= set(page.titles("small"))
    assert page.all("abbr")[0] == {"title": "lower is better"}
    assert "0.550" in page.text() and "3.25" in page.text()
    charts = [s["aria-label"].split(". ")[0] for s in page.all("svg")]
    assert charts == ["MAE, brain", "Dice, ET", "HD95, WT"]


def test_another_modality_set(tmp_path: Path) -> None:
    other = ModalitySet("other", ("pd", "t1"), {"pd": "proton density"}, {}, {1: "lesion"}, {"ALL": (1,)})
    some = score_table([scores("a", "pd", {"synthetic": {"mae/brain": 5.0, "dice/ALL": 0.5}})])
    page = some_page(tmp_path, some, other)
    assert "proton density" in page.titles("th") and {"Dice, ALL", "MAE, brain"} <= {
        s["aria-label"].split(". ")[0] for s in page.all("svg")
    }
    assert "T1 native" not in page.text() and "Dice, ALL" in page.titles("div")


def test_the_best_of_a_target_is_marked() -> None:
    table = metric_table(
        summarise(table_of({"synthetic": [2, 4], "copy of t1n": [1, 3]})), ["mae/brain"], "x"
    )
    cells = [row["cells"][0] for row in table["groups"][0]["rows"]]
    assert [(c["value"], c["best"]) for c in cells] == [("3.00", False), ("2.00", True)]


def test_where_baselines_win_is_said() -> None:
    lost = summarise(table_of({"synthetic": [5, 5], "mean of available": [4, 4], "copy of t1n": [6, 6]}))
    assert best_baseline(lost, "t1c", "mae/brain")[0] == "mean of available"  # type: ignore[index]
    (card,), sentences = overview(lost)
    assert (card.verdict, card.more, card.good) == (
        "not better",
        "than mean of available, 4.00 ± 0.00",
        False,
    )
    assert sentences == [
        "T1 contrast-enhanced: a baseline is as good or better in MAE, brain (mean of available)."
    ]
    won = summarise(table_of({"synthetic": [3, 3], "mean of available": [4, 4]}))
    assert overview(won)[1] == ["T1 contrast-enhanced: better than every baseline."]
    alone = summarise(table_of({"synthetic": [3]}))
    assert overview(alone)[0][0].more == "a single case"


def test_many_cases_are_drawn_as_pixels() -> None:
    values = np.random.default_rng(0).normal(10, 1, 2000).tolist()
    (group,) = distributions(table_of({"synthetic": values}))
    (found,) = group["charts"]
    assert "data:image/png;base64" in found.svg and len(found.svg) < 100_000
    assert "2000 cases" in found.svg


def test_titles() -> None:
    assert (
        title_of("challenge_ssim/tumour") == "Challenge SSIM, tumour" and title_of("new_score") == "new score"
    )


def test_an_outline_runs_between_the_pixels() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    path = contour_path(mask)
    points = [tuple(map(float, p.split())) for p in path[1:-1].split("L")]
    xs, ys = zip(*points)
    assert path[0] == "M" and path[-1] == "Z"
    assert (min(xs), max(xs), min(ys), max(ys)) == (3, 6, 2, 4)
    assert contour_path(mask & False) == ""
    mask[:] = True  # also at the picture's edge
    xs, ys = zip(*(tuple(map(float, p.split())) for p in contour_path(mask)[1:-1].split("L")))
    assert (min(xs), max(xs), min(ys), max(ys)) == (0, 8, 0, 6)


def test_outlines_by_region() -> None:
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8], labels[3:6, 3:6] = 2, 1
    strokes = [p["stroke"] for p in Page(outline_layer(labels)).all("path")]
    assert strokes == ["#ffc400", "#35d0ff"]  # whole tumour and core; nothing enhances
    assert outline_layer(labels * 0) == ""


def test_slices_and_spans() -> None:
    volume = np.zeros((5, 6, 7))
    volume[1, 2:4, 3] = 1
    volume[2, 2, 3] = 1
    assert busiest_slices(volume) == [1, 2, 3]
    assert at_least(slice(10, 12), 6, 40) == slice(8, 14)
    assert at_least(slice(0, 2), 6, 40) == slice(0, 6) and at_least(slice(38, 40), 6, 40) == slice(34, 40)
    assert at_least(slice(0, 3), 9, 5) == slice(0, 5) and at_least(slice(1, 9), 4, 40) == slice(1, 9)


def test_nothing_but_problems_in_part(tmp_path: Path) -> None:
    """A result whose segmentation failed keeps its image scores (and is listed)."""
    prediction = Prediction(tmp_path / "a-t1c.nii.gz", "a", "t1c")
    values = {"synthetic": {"mae/brain": 3.0, "psnr/brain": None}}
    result = CaseScores(prediction, "c", values, 1.0, "the segmenter failed")
    write_report(tmp_path / "r.html", [result], score_table([result]), {}, tmp_path)
    page = checked(tmp_path / "r.html")
    assert "a-t1c.nii.gz (scored in part): the segmenter failed" in page.text()
    assert "No case could be scored" in page.text()
