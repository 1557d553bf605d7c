"""Paired comparison against enumeration by hand: every sign pattern, every rank."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brasyn_dist.cli.compare import main
from brasyn_dist.evaluation.paired_tests import (
    PairedScores,
    compare_scores,
    rank_of_a,
    ranking,
    score_difference,
    sign_flip_p,
)


def exact_p(differences: np.ndarray) -> float:
    """Share of all sign patterns whose mean is at least as far from 0."""
    observed = abs(np.mean(differences))
    patterns = itertools.product((1, -1), repeat=len(differences))
    means = [abs(np.mean(differences * np.array(signs))) for signs in patterns]
    return float(np.mean([m >= observed * (1 - 1e-12) for m in means]))


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11])
@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_small_samples_are_exact(n: int, shift: float):
    differences = np.random.default_rng(n).normal(shift, 1, n)
    assert sign_flip_p(differences) == pytest.approx(exact_p(differences), abs=1e-12)


def test_ties_count_as_extreme():
    """Ranks are full of ties: five patients, all in favour of one side, give 2 of 32 patterns."""
    assert sign_flip_p(np.full(5, 1.0)) == pytest.approx(2 / 32)
    assert sign_flip_p(np.array([1.0, 1.0, -1.0, 1.0])) == pytest.approx(exact_p(np.array([1.0, 1, -1, 1])))
    assert sign_flip_p(np.zeros(7)) == 1 and sign_flip_p(np.array([4.0])) == 1


def test_large_samples_are_drawn_repeatably_and_near_the_exact_p():
    differences = np.random.default_rng(3).normal(0.35, 1, 14)
    drawn = sign_flip_p(differences, resamples=9999, seed=1)
    exact = exact_p(differences)
    assert drawn == sign_flip_p(differences, resamples=9999, seed=1)
    assert drawn != sign_flip_p(differences, resamples=9999, seed=2)
    assert drawn == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 9999))
    assert sign_flip_p(np.full(40, 1.0), resamples=999) == pytest.approx(2 / 1000)  # never 0; two-sided


def test_no_difference_gives_small_p_as_rarely_as_it_should():
    """Under the null hypothesis p is uniform: one in ten is at most 0.1."""
    rng = np.random.default_rng(0)
    small = [sign_flip_p(rng.normal(0, 1, 9)) <= 0.1 for _ in range(300)]
    assert 0.05 < np.mean(small) < 0.16


Scores = dict[str, float | None]


def paired(*pairs: tuple[str, str, Scores, Scores]) -> PairedScores:
    """From (case, modality, scores of A, scores of B)."""
    index = pd.MultiIndex.from_tuples([p[:2] for p in pairs], names=["case", "modality"])
    a, b = (pd.DataFrame([p[side] for p in pairs], index=index, dtype=float) for side in (2, 3))
    return PairedScores(a, b)


def rank_of(a: float, b: float, metric: str) -> float:
    return rank_of_a(pd.DataFrame({"a": [a], "b": [b]}), metric).item()


def test_ranks_by_hand():
    assert rank_of(0.9, 0.8, "dice/WT") == 1 and rank_of(9, 8, "hd95/WT") == rank_of(9, 8, "mae/brain") == 2
    assert rank_of(0.5, 0.5, "dice/ET") == 1.5
    pairs = paired(
        ("x", "t1c", {"dice/WT": 0.9, "dice/ET": 0.2}, {"dice/WT": 0.8, "dice/ET": 0.3}),
        ("y", "t1c", {"dice/WT": 0.9, "dice/ET": 0.5}, {"dice/WT": 0.8, "dice/ET": 0.5}),
        ("z", "t1c", {"dice/WT": 0.9, "dice/ET": None}, {"dice/WT": 0.8, "dice/ET": 0.1}),
    )
    ranked = ranking(pairs, ["dice/WT", "dice/ET"], 9999, 0)
    assert ranked.rank_a == pytest.approx((1.5 + 1.25 + 1) / 3)
    assert ranked.rank_b == pytest.approx((1.5 + 1.75 + 2) / 3)
    assert ranked.p == pytest.approx(exact_p(np.array([0, 0.5, 1.0])))


def test_volumes_of_one_patient_change_sides_together():
    """Two time points and four modalities of one patient are one observation, not five."""
    pairs = [
        (f"BraTS-GLI-0000{n}-00{t}", m, {"mae/brain": 2.0}, {"mae/brain": 1.0})
        for n in range(3)
        for t, m in ((0, "t1c"), (0, "t1n"), (1, "t1c"))
    ]
    found = score_difference(paired(*pairs), "mae/brain", 9999, 0)
    assert found.patients == 3 and found.p == pytest.approx(2 / 8)


def test_unknown_scores_are_left_out_only_by_default():
    pairs = paired(("x", "t1c", {"mae/brain": 2.0}, {"mae/brain": 1.0}))
    assert compare_scores(pairs).ranking is None
    with pytest.raises(Exception, match="no volume has dice/WT"):
        compare_scores(pairs, ["dice/WT"])


def write_table(path: Path, offset: float, cases: int = 6) -> Path:
    rng = np.random.default_rng(1)
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["case", "cohort", "modality", "method", "mae/brain", "challenge_ssim/tumour", "dice/WT"]
        )
        for n in range(cases):
            noise = rng.normal(0, 0.01)
            writer.writerow(
                [
                    f"case-{n}",
                    "c",
                    "t1c",
                    "synthetic",
                    50 - 9 * offset,
                    0.99 + offset / 100,
                    0.7 + offset + noise,
                ]
            )
            writer.writerow([f"case-{n}", "c", "t1c", "linear regression", 60, 0.9, ""])
    return path


def test_as_its_user_runs_it(tmp_path: Path, capsys):
    a, b = write_table(tmp_path / "a/cases.csv", 0), write_table(tmp_path / "b/cases.csv", 0.1)
    assert main([str(a.parent), str(b), "--out", str(tmp_path / "c.json")]) == 0
    text = capsys.readouterr().out
    assert "B *" in text and "mean rank" in text
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["ranking"]["rank_b"] == 1 and found["ranking"]["p"] == pytest.approx(2 / 64)
    assert found["ranking"]["scores"] == ["challenge_ssim/tumour", "dice/WT"]
    by_score = {d["score"]: d for d in found["differences"]}
    assert by_score["mae/brain"]["difference"] == pytest.approx(-0.9)
    assert main([str(a), str(a), "--method-b", "linear regression"]) == 0
    assert "dice/WT" not in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys):
    a, b = write_table(tmp_path / "a/cases.csv", 0), write_table(tmp_path / "b/cases.csv", 0, cases=4)
    assert main([str(a), str(b)]) == 1
    assert "2 volumes are in one evaluation only: case-4 t1c (A)" in capsys.readouterr().err
    assert main([str(a), str(b), "--common"]) == 0
    assert main([str(a), str(b), "--method-b", "nothing"]) == 1
    assert "there are linear regression, synthetic" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("1,2\n")
    assert main([str(a), str(tmp_path / "x.csv")]) == 1
    assert main([str(a), str(tmp_path / "absent.csv")]) == 1
