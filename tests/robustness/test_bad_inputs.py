"""Kind 9: all bad inputs in one pass, `--skip-bad` leaves out each, one bad reference never stops an evaluation."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import find_cases
from brasyn_dist.cli import drop_modality, evaluate, shard
from brasyn_dist.data.case_folders import unreadable_cases, usable_cases
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.nifti import read_case, write_like
from brasyn_dist.errors import DataError
from brasyn_dist.evaluation.baselines import fit_regression
from brasyn_dist.evaluation.scoring import find_predictions
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.data.case_files import save, write_case

GOOD = ["BraTS-GLI-00008-000", "BraTS-GLI-00009-000"]


def volume(folder: Path, kind: str) -> Path:
    return folder / f"{folder.name}-{kind}.nii.gz"


def dead_link(folder: Path) -> None:
    volume(folder, "t1c").unlink()
    volume(folder, "t1c").symlink_to("../.git/annex/objects/x")


def interpolated(folder: Path) -> None:
    save(volume(folder, "seg"), np.random.default_rng(0).uniform(0, 3, (36, 40, 28)), dtype=np.float32)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nothing": (dead_link, "link to nothing"),
    "damaged": (lambda f: volume(f, "t2f").write_bytes(b"\x1f\x8bnothing"), "truncated or damaged"),
    "absent": (lambda f: volume(f, "t2w").unlink(), "no volume for t2w"),
    "twice": (lambda f: shutil.copy(volume(f, "t1n"), f / f"{f.name}_t1.nii.gz"), "two files for t1n"),
    "an interpolated mask": (interpolated, "different values"),
    "another grid": (lambda f: save(volume(f, "t1n"), np.ones((8, 9, 10))), "shape"),
    "rescaled": (
        lambda f: save(volume(f, "t1c"), np.random.default_rng(0).uniform(0, 1, (36, 40, 28)), dtype="f4"),
        "rescaled",
    ),
}
OF_NAMES = ("a link to nothing", "absent", "twice")
"""Problems that the names of the files show."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "gli"
    for number in range(len(BAD)):
        write_case(root, f"BraTS-GLI-{number:05d}-000", number)
    for number, name in enumerate(GOOD):
        write_case(root, name, 50 + number)
    return root


@pytest.fixture
def cohort(whole: Path, tmp_path: Path) -> Path:
    """Two good cases, and a bad one of each kind."""
    shutil.copytree(whole, tmp_path / "gli")
    for number, (damage, _) in enumerate(BAD.values()):
        damage(tmp_path / "gli" / f"BraTS-GLI-{number:05d}-000")
    return tmp_path / "gli"


def check_message(text: str, kinds: tuple[str, ...] = tuple(BAD)) -> None:
    """Every bad case is named with its reason in a short line, and the remedy is said."""
    for number, (kind, (_, reason)) in enumerate(BAD.items()):
        if kind in kinds:
            lines = [line for line in text.splitlines() if f"BraTS-GLI-{number:05d}-000" in line]
            assert any(reason in line for line in lines), (kind, text)
    assert max(map(len, text.splitlines())) < 500


def test_sharding_lists_and_leaves_out_every_kind(cohort, tmp_path, capsys):
    arguments = [
        str(cohort),
        "--out",
        str(tmp_path / "out"),
        "--views",
        "axial",
        "--minimum-foreground",
        "50",
    ]
    arguments += ["--workers", "1"]
    assert shard.main(arguments) == 1
    text = capsys.readouterr().err
    check_message(text)
    assert f"{len(BAD)} bad cases" in text and "--skip-bad" in text
    assert shard.main([*arguments, "--skip-bad"]) == 0
    header = open_shard_set(tmp_path / "out").header
    assert [case.name for case in header.cases] == GOOD
    assert len(header.skipped) == len(BAD)


def test_when_all_are_bad_the_reasons_are_listed(cohort, tmp_path, capsys):
    for name in GOOD:
        shutil.rmtree(cohort / name)
    out = str(tmp_path / "out")
    assert shard.main([str(cohort), "--out", out, "--views", "axial", "--skip-bad", "--workers", "1"]) == 1
    text = capsys.readouterr().err
    assert "no training case is left" in text
    assert all(reason in text for _, reason in BAD.values())


def test_commands_that_only_need_names(cohort, tmp_path, caplog):
    with pytest.raises(DataError) as raised:
        usable_cases([cohort], complete=True)
    check_message(str(raised.value), OF_NAMES)
    assert "--skip-bad" in str(raised.value)
    left = usable_cases([cohort], complete=True, skip_bad=True)
    assert len(left) == len(BAD) + len(GOOD) - len(OF_NAMES)
    check_message(caplog.text, OF_NAMES)
    assert drop_modality.main([str(cohort), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert drop_modality.main([str(cohort), str(tmp_path / "out"), "--skip-bad"]) == 0
    assert len(json.loads((tmp_path / "out/dropped.json").read_text())) == len(left)


def test_commands_that_read_volumes(cohort):
    left = usable_cases([cohort], complete=True, skip_bad=True)
    bad = {case.folder.name: case.reason for case in unreadable_cases(left, labels=True)}
    assert len(bad) == len(BAD) - len(OF_NAMES)
    check_message("\n".join(bad.values()), tuple(set(BAD) - set(OF_NAMES)))
    with pytest.raises(DataError, match=r"(?s)^\d bad cases.*damaged.*--skip-bad"):
        fit_regression(left, PUBLISHED)
    fitted = fit_regression(left, PUBLISHED, skip_bad=True)
    assert set(GOOD) <= set(fitted.cases) and len(fitted.cases) < len(left)


def test_one_bad_reference_never_stops_an_evaluation(cohort, whole, tmp_path, capsys):
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for case in find_cases(whole):
        volumes = read_case(case)
        write_like(predictions / f"{case.name}-t2f.nii.gz", volumes.images[2], volumes.reference)
    out = tmp_path / "out"
    arguments = ["--predictions", str(predictions), "--references", str(cohort), "--out", str(out)]
    assert evaluate.main([*arguments, "--no-baselines"]) == 1
    problems = json.loads((out / "summary.json").read_text())["problems"]
    assert len(problems) == len(BAD) and not any(problem["scored"] for problem in problems)
    check_message("\n".join(f"{p['prediction']} {p['reason']}" for p in problems))
    assert len((out / "cases.csv").read_text().splitlines()) == 1 + len(GOOD)
    check_message(capsys.readouterr().err)


# Cases that the user leaves out


def findings(*entries: tuple[str, str]) -> str:
    return json.dumps([{"case": c, "kind": k, "modality": "t1c", "detail": "why"} for c, k in entries])


@pytest.mark.parametrize(
    ("content", "kinds", "excluded"),
    [
        (findings((GOOD[0], "duplicate")), (), {GOOD[0]: "duplicate t1c why"}),
        ('{"findings": ' + findings((GOOD[0], "duplicate")) + "}", (), {GOOD[0]: "duplicate t1c why"}),
        (
            findings((GOOD[0], "duplicate"), (GOOD[1], "geometry")),
            ("duplicate",),
            {GOOD[0]: "duplicate t1c why"},
        ),
        (f"# seen by eye\n{GOOD[0]}\n", (), {GOOD[0]: "listed"}),
        (json.dumps([GOOD[0], "elsewhere"]), (), {GOOD[0]: "listed"}),
    ],
)
def test_findings_exclude_cases_and_the_index_says_so(whole, tmp_path, content, kinds, excluded, caplog):
    (tmp_path / "findings.json").write_text(content)
    arguments = [str(whole), "--out", str(tmp_path / "out"), "--views", "axial", "--minimum-foreground", "50",
                 "--workers", "1", "--exclude", str(tmp_path / "findings.json")]  # fmt: skip
    arguments += [word for kind in kinds for word in ("--exclude-kind", kind)]
    assert shard.main(arguments) == 0
    assert ("1 of its names are no case and exclude nothing" in caplog.text) == ("elsewhere" in content)
    header = open_shard_set(tmp_path / "out").header
    assert not {case.name for case in header.cases} & set(excluded)
    assert {s["case"]: s["reason"] for s in header.skipped} == {
        name: f"{name}: excluded: {reason}" for name, reason in excluded.items()
    }
    assert set(excluded) <= set(header.options["exclude"])
    assert shard.main(arguments) == 0, "a finished set needs no --skip-bad because of them"
    assert shard.main(arguments[:-2] if not kinds else arguments[:-4]) == 1, "another list is another set"


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"case": "x"}]', "[", '{"findings": 3}'])
def test_files_without_findings_are_refused(whole, tmp_path, content, capsys):
    (tmp_path / "f").write_text(content)
    assert shard.main([str(whole), "--out", str(tmp_path / "out"), "--exclude", str(tmp_path / "f")]) == 1
    assert f"{tmp_path / 'f'}: no findings" in capsys.readouterr().err


def test_inspect_writes_findings_that_sharding_takes(cohort, tmp_path, capsys):
    from brasyn_dist.cli import inspect

    assert inspect.main([str(cohort), "--out", str(tmp_path / "i")]) == 0
    out = capsys.readouterr().out
    for title in ("percentiles of the foreground", "clipping at the 99.5th", "Slices", "Share of all voxels"):
        assert title in out
    found = json.loads((tmp_path / "i/findings.json").read_text())
    assert {"case", "kind", "modality", "detail"} == set(found[0])
    bad = [f for f in found if f["kind"] in ("unreadable", "file")]
    check_message("\n".join(f"{f['case']} {f['detail']}" for f in bad))
    (tmp_path / "f.json").write_text(json.dumps(bad))
    arguments = [
        str(cohort),
        "--out",
        str(tmp_path / "out"),
        "--views",
        "axial",
        "--minimum-foreground",
        "50",
    ]
    assert shard.main([*arguments, "--workers", "1", "--exclude", str(tmp_path / "f.json")]) == 0


def test_two_predictions_of_one_volume_are_refused(tmp_path: Path):
    """They would count twice in every mean."""
    for name in ("a-t1c.nii.gz", "a-t1c.nii", "b-t1c.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"two predictions of one volume, a-t1c.nii and a-t1c.nii.gz; keep one"
    ):
        find_predictions(tmp_path)


def test_volumes_that_are_no_predictions_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a-t1c.nii.gz", "B-T1C.NII.GZ", "a-t1n.mgz", "a_flair.nii", "a-seg.nii.gz", "manifest.json"):
        (tmp_path / name).touch()
    assert [p.path.name for p in find_predictions(tmp_path)] == ["a-t1c.nii.gz"]
    assert "4 volumes are no predictions: B-T1C.NII.GZ, a-seg.nii.gz, a-t1n.mgz, ...; expected" in caplog.text
