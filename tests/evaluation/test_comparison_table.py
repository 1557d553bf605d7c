"""Layout and numbers of the comparison of runs; scores by cohort."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

from brasyn_dist.cli.table import main
from brasyn_dist.evaluation.comparison_table import comparison, latex, markdown
from brasyn_dist.evaluation.tables import by_cohort, kind_of_cohort, table_csv


def evaluation(dice: tuple[float, ...], mae: float = 10.0) -> pd.DataFrame:
    names = ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000", "BraTS-MET-00001-000")
    rows = [
        {
            "case": case, "cohort": "val", "modality": "t1c", "method": method, "mae/brain": mae,
            "challenge_ssim/tumour": 0.99, "challenge_ssim/healthy": 0.9,
            "dice/ET": value if method == "synthetic" else np.nan, "dice/WT": 0.5, "dice/NETC": 0.1,
        }
        for method in ("synthetic", "mean of available")
        for case, value in zip(names, dice)
    ]  # fmt: skip
    return pd.DataFrame(rows)


TWO = {"r1": evaluation((0.2, 0.4, 0.9), 10.0), "r2": evaluation((0.6, 0.8, 0.1), 12.0)}


def test_rows_are_metric_set_and_class_and_columns_are_runs():
    frame = comparison(TWO)
    assert frame.loc[("dice", "all", "ET")].tolist() == pytest.approx([50.0, 50.0])
    assert frame.loc[("dice", "GLI", "ET")].tolist() == pytest.approx([30.0, 70.0])
    assert frame.loc[("dice", "MET", "ET")].tolist() == pytest.approx([90.0, 10.0])
    assert frame.loc[("mae", "GLI", "brain")].tolist() == [10.0, 12.0]
    lines = markdown(frame).splitlines()
    assert lines[0] == "| metric | validation set | class | r1 | r2 |"
    body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:3] for row in body[:4]] == [
        ["SSIM (challenge) %", "ALL", "WT"],
        ["SSIM (challenge) %", "ALL", "HT"],
        ["SSIM (challenge) %", "GLI", "WT"],
        ["SSIM (challenge) %", "GLI", "HT"],
    ]
    assert ["Dice %", "GLI", "ET", "30.00", "**70.00**"] in body
    assert ["MAE", "ALL", "brain", "**10.00**", "12.00"] in body, "lower is better"
    assert not [row for row in body if row[2] == "NETC"]


def test_regions_of_other_modality_sets_have_rows():
    """The titles of Table 5.1, such as WT for the tumour, are those of BraTS."""
    names = {"dice/ET": "dice/lesion", "dice/WT": "dice/organ at risk", "dice/NETC": "nsd/lesion"}
    frame = comparison({"r1": TWO["r1"].rename(columns=names).assign(modality="ct")})
    body = [line.split(" | ")[:3] for line in markdown(frame).splitlines()[2:]]
    dice = [row[2] for row in body if row[:2] == ["| Dice %", "ALL"]]
    assert dice == ["lesion", "organ at risk"]
    assert {title for metric, _, title in frame.index if metric == "challenge_ssim"} == {"tumour", "healthy"}


def test_runs_with_other_cohorts_have_no_value_there():
    only_gli = TWO["r1"][TWO["r1"].case.str.contains("GLI")]
    frame = comparison({"gli": only_gli, "both": TWO["r2"]})
    assert np.isnan(frame.loc[("dice", "MET", "ET"), "gli"])
    assert "| Dice % | MET | ET | - | **10.00** |" in markdown(frame)


def test_latex_is_a_booktabs_table_with_escaped_names():
    text = latex(comparison({"r_1": TWO["r1"], "r2": TWO["r2"]}))
    assert text.startswith("\\begin{tabular}{lllrr}") and "\\toprule" in text
    assert "r\\_1" in text and "Dice \\%" in text and "\\textbf{70.00}" in text
    assert not re.search(r"(?<!\\)[_#$%]", text), "special characters are escaped"
    (table,) = LatexWalker(text.strip(), tolerant_parsing=False).get_latex_nodes()[0]
    assert isinstance(table, LatexEnvironmentNode) and table.environmentname == "tabular"
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    rows = [row for row in body.split(r"\\") if "&" in row]
    assert len(rows) == len(comparison(TWO)) and {row.count("&") for row in rows} == {4}


def test_command_writes_three_files_and_names_equal_columns(tmp_path: Path, capsys):
    for name, table in TWO.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cases.csv").write_text(table_csv(table))
    (tmp_path / "r2/summary.json").write_text('{"reference_segmentation": "pseudo"}')
    words = [str(tmp_path / "r1"), f"R2={tmp_path / 'r2'}"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out/table.md").read_text() == printed and "pseudo-labels for R2" in printed
    with (tmp_path / "out/table.csv").open() as file:
        rows = {(r["metric"], r["validation set"], r["class"]): r for r in csv.DictReader(file)}
    assert float(rows["Dice %", "GLI", "ET"]["R2"]) == pytest.approx(70.0)
    assert (tmp_path / "out/table.tex").read_text().startswith("\\begin{tabular}")
    assert main([words[0], words[0]]) == 1 and "NAME=" in capsys.readouterr().err
    assert main([words[0], "--method", "magic"]) == 1 and "no method" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cohort", "case", "kind"),
    [
        ("val", "BraTS-MEN-00001-000", "MEN"),
        ("train_met", "case7", "MET"),
        ("train_gli", "BraTS2021_00001", "GLI"),
        ("hospital", "case7", "hospital"),
        ("", "case7", "unknown"),
    ],
)
def test_kind_of_a_cohort(cohort: str, case: str, kind: str):
    assert kind_of_cohort(cohort, case) == kind


def test_cohorts_are_a_partition_of_the_table():
    parts = by_cohort(TWO["r1"])
    assert list(parts) == ["GLI", "MET"] and sum(map(len, parts.values())) == len(TWO["r1"])
