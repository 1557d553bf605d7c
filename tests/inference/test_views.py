"""Several models and views from the command line to the files, and fusions fitted and used there."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from brasyn_dist.brats import MODALITIES
from brasyn_dist.cli.fit_fusion import main as fit_main
from brasyn_dist.cli.infer import main
from brasyn_dist.common.files import sha256_of
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.ensemble import load_members
from tests.inference.small import export, write_subject

THREE = ["t1c", "t1n", "t2w"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports `a` (axial) and `b` (sagittal), of different weights, and `r9.yaml`, which names both."""
    root = tmp_path_factory.mktemp("models")
    export(root / "a", ["axial"], seed=1)
    export(root / "b", ["sagittal"], seed=2)
    (root / "r9.yaml").write_text(
        f"members:\n  - weights: {root / 'a'}\n    views: [axial]\n  - weights: {root / 'b'}\n    views: [sagittal]\n"
    )
    return root


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    for seed in range(2):
        write_subject(root, f"case{seed}", MODALITIES, seed=seed)
    write_subject(root, "incomplete", THREE, seed=5)
    return root


def infer(folder: Path, out: Path, *weights: object, options: tuple[str, ...] = ()) -> int:
    words = ["--weights", *map(str, weights), "--input", str(folder), "--output", str(out)]
    return main([*words, "--device", "cpu", "--batch-size", "8", *options])


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def test_one_model_a_view_is_the_mean_of_both_runs(models: Path, tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "x", THREE)
    a, b = models / "a", models / "b"
    assert infer(tmp_path / "in", tmp_path / "a", a) == 0
    assert infer(tmp_path / "in", tmp_path / "b", b) == 0
    assert infer(tmp_path / "in", tmp_path / "both", f"{b}:sagittal", f"{a}:axial") == 0
    assert infer(tmp_path / "in", tmp_path / "file", models / "r9.yaml") == 0
    one, two, both = (voxels(tmp_path / n / "x-t2f.nii.gz").astype(float) for n in ("a", "b", "both"))
    assert np.abs(one - two).max() > 20
    np.testing.assert_allclose(both, (one + two) / 2, atol=1)
    same = [(tmp_path / n / "x-t2f.nii.gz").read_bytes() for n in ("both", "file")]
    assert same[0] == same[1]
    manifest = json.loads((tmp_path / "both/manifest.json").read_text())
    hashes = [m.weights_sha256 for m in load_members([a, b], torch.device("cpu"))]
    assert manifest["identity"]["members"] == [
        {"view": "axial", "weights_sha256": hashes[0]},
        {"view": "sagittal", "weights_sha256": hashes[1]},
    ]


def test_views_of_a_member_are_those_that_it_was_trained_on(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_subject(tmp_path / "in", "x", THREE)
    assert infer(tmp_path / "in", tmp_path / "out", f"{models / 'a'}:sagittal") == 1
    assert "was trained on axial slices" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="given 2 times"):
        load_members([models / "a", f"{models / 'a'}:axial"], torch.device("cpu"))


def fit(models: Path, cases: Path, out: Path, *options: str) -> int:
    words = ["--weights", str(models / "r9.yaml"), "--cases", str(cases), "--out", str(out)]
    return fit_main([*words, "--device", "cpu", "--voxels", "300", "--batch-size", "8", *options])


def test_fitted_and_used(
    models: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_subject(tmp_path / "in", "x", THREE)
    file, again = tmp_path / "fusion.json", tmp_path / "again.json"
    assert fit(models, cases, file) == 0
    shown = capsys.readouterr()
    assert "has no t2f" in shown.err and "axial" in shown.out and "fused" in shown.out
    values = json.loads(file.read_text())
    assert values["fit"]["cases"] == ["case0", "case1"]
    assert set(values["fit"]["unseen_mae"]["t1c"]) == {"axial", "sagittal", "mean", "fused"}
    assert fit(models, cases, again) == 0
    assert again.read_bytes() == file.read_bytes()

    plain, out = tmp_path / "plain", tmp_path / "out"
    assert infer(tmp_path / "in", plain, models / "r9.yaml") == 0
    assert infer(tmp_path / "in", out, models / "r9.yaml", options=("--fusion", str(file))) == 0
    made, mean = voxels(out / "x-t2f.nii.gz"), voxels(plain / "x-t2f.nii.gz")
    assert np.abs(made.astype(int) - mean).max() > 1
    identity = json.loads((out / "manifest.json").read_text())["identity"]
    assert identity["fusion_sha256"] == sha256_of(file)
    one, two = (tmp_path / n for n in "ab")
    assert infer(tmp_path / "in", one, models / "a") == 0
    assert infer(tmp_path / "in", two, models / "b") == 0
    a, b = values["weights"]["t2f"]
    expected = a * voxels(one / "x-t2f.nii.gz") + b * voxels(two / "x-t2f.nii.gz")
    np.testing.assert_allclose(made, expected, atol=1)


def test_another_fusion_is_another_identity(
    models: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_subject(tmp_path / "in", "x", THREE)
    assert fit(models, cases, tmp_path / "one.json") == 0
    assert fit(models, cases, tmp_path / "two.json", "--seed", "1") == 0
    one, two = (("--fusion", str(tmp_path / f"{n}.json")) for n in ("one", "two"))
    out, file = tmp_path / "out", models / "r9.yaml"
    assert infer(tmp_path / "in", out, file, options=one) == 0
    capsys.readouterr()
    assert infer(tmp_path / "in", out, file, options=one) == 0
    assert "kept, made by an earlier run" in capsys.readouterr().out
    before = (out / "x-t2f.nii.gz").read_bytes()
    for options in (two, ()):
        assert infer(tmp_path / "in", out, file, options=options) == 1
        assert "fusion_sha256" in capsys.readouterr().err
    assert (out / "x-t2f.nii.gz").read_bytes() == before
    assert infer(tmp_path / "in", out, file, options=(*two, "--overwrite")) == 0
    identity = json.loads((out / "manifest.json").read_text())["identity"]
    assert identity["fusion_sha256"] == sha256_of(tmp_path / "two.json")
    assert infer(tmp_path / "in", tmp_path / "other", models / "a", options=one) == 1
    assert "fitted for other members" in capsys.readouterr().err


def test_nothing_to_fuse(
    models: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--weights", str(models / "a"), "--cases", str(cases), "--out", str(tmp_path / "f.json")]
    assert fit_main([*words, "--device", "cpu"]) == 1
    assert "nothing to be fused with" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    write_subject(tmp_path / "none", "x", THREE)
    assert fit(models, tmp_path / "none", tmp_path / "f.json") == 1
    assert "no complete case" in capsys.readouterr().err and not (tmp_path / "f.json").exists()
