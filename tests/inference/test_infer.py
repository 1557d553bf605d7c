"""`python -m brasyn_dist.infer` from folder to folder."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import brasyn_dist
from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.cli.infer import main
from brasyn_dist.common.files import sha256_of
from brasyn_dist.config import GeneratorConfig
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.evaluation.scoring import find_predictions, modality_set_of
from brasyn_dist.inference.ensemble import load_members
from brasyn_dist.inference.synthesis import SynthesisOptions, synthesise_case
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.registry import build_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics
from tests.inference.small import LPS_AFFINE, brain, export, four, write_subject

CPU = torch.device("cpu")
THREE = ["t1c", "t1n", "t2w"]


def infer(weights: Path, root: Path, *options: str) -> int:
    folders = ["--weights", weights, "--input", root / "in", "--output", root / "out"]
    return main([*map(str, folders), "--device", "cpu", "--batch-size", "8", *options])


def manifest(root: Path) -> dict:
    return json.loads((root / "out" / "manifest.json").read_text())


def entries(root: Path) -> dict[str, dict]:
    return {entry["case"]: entry for entry in manifest(root)["cases"]}


def canonical(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)


def test_each_missing_modality_is_made_in_the_inputs_form(axial_weights: Path, tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "a", THREE)
    write_subject(tmp_path / "in", "b", ["t2f"], seed=1)
    write_subject(tmp_path / "in", "whole", MODALITIES)
    assert infer(axial_weights, tmp_path) == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "a-t2f.nii.gz", "b-t1c.nii.gz", "b-t1n.nii.gz", "b-t2w.nii.gz"}
    image = nibabel.load(tmp_path / "out" / "a-t2f.nii.gz")
    source = nibabel.load(tmp_path / "in" / "a" / "a-t1c.nii.gz")
    assert image.get_data_dtype() == np.int16 and image.header["descrip"] == source.header["descrip"]
    np.testing.assert_array_equal(image.affine, LPS_AFFINE)
    members = load_members(axial_weights, CPU)
    expected = synthesise_case(members, four(brain(0)), THREE, ["t2f"], SynthesisOptions(batch_size=8))["t2f"]
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
    several = synthesise_case(
        members, four(brain(1)), ["t2f"], ["t1c", "t2w"], SynthesisOptions(batch_size=8)
    )
    for target, volume in several.items():
        written = nibabel.load(tmp_path / "out" / f"b-{target}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), volume)
    assert entries(tmp_path)["whole"]["status"] == "skipped"


def test_lps_and_ras_inputs_give_the_same_brain(axial_weights: Path, tmp_path: Path) -> None:
    for order in ("LPS", "RAS"):
        write_subject(tmp_path / "in", order, THREE, order=order)
    assert infer(axial_weights, tmp_path) == 0
    for order in ("LPS", "RAS"):
        image = nibabel.load(tmp_path / "out" / f"{order}-t2f.nii.gz")
        assert "".join(nibabel.aff2axcodes(image.affine)) == order
        np.testing.assert_array_equal(
            image.affine, nibabel.load(tmp_path / "in" / order / f"{order}-t1c.nii.gz").affine
        )
    lps, ras = (canonical(tmp_path / "out" / f"{order}-t2f.nii.gz") for order in ("LPS", "RAS"))
    assert lps.max() > 100
    np.testing.assert_array_equal(lps, ras)


def test_floating_point_files_give_whole_numbers_in_their_type(axial_weights: Path, tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "a", THREE, dtype=np.float32)
    write_subject(tmp_path / "in", "b", THREE)
    assert infer(axial_weights, tmp_path) == 0
    image = nibabel.load(tmp_path / "out" / "a-t2f.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(
        image.get_fdata(), nibabel.load(tmp_path / "out" / "b-t2f.nii.gz").get_fdata()
    )


def test_named_modalities_and_views(weights: Path, tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "whole", MODALITIES)
    assert infer(weights, tmp_path, "--modality", "t1c", "--views", "sagittal", "axial") == 0
    members = load_members(weights, CPU, ["axial", "sagittal"])
    expected = synthesise_case(
        members, four(brain()), ["t1n", "t2f", "t2w"], ["t1c"], SynthesisOptions(batch_size=8)
    )["t1c"]
    written = nibabel.load(tmp_path / "out" / "whole-t1c.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), expected)
    assert [m["view"] for m in manifest(tmp_path)["identity"]["members"]] == ["axial", "sagittal"]


def test_untrained_views_are_refused(
    axial_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_subject(tmp_path / "in", "a", THREE)
    assert infer(axial_weights, tmp_path, "--views", "coronal") == 1
    assert "--any-view" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert infer(axial_weights, tmp_path, "--views", "coronal", "--any-view") == 0


def test_bad_cases_are_listed_and_the_rest_is_done(
    axial_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "torn", "twice", "z"):
        write_subject(tmp_path / "in", name, THREE)
    torn = tmp_path / "in" / "torn" / "torn-t1n.nii.gz"
    torn.write_bytes(torn.read_bytes()[:3000])
    (tmp_path / "in" / "twice" / "twice_t1.nii.gz").write_bytes(b"")
    assert infer(axial_weights, tmp_path) == 1
    shown = capsys.readouterr()
    assert (
        "failed: torn:" in shown.err and "torn-t1n.nii.gz" in shown.err and "two files for t1n" in shown.err
    )
    assert "2 of 4 cases" in shown.out
    statuses = {name: entry["status"] for name, entry in entries(tmp_path).items()}
    assert statuses == {"a": "done", "torn": "failed", "twice": "failed", "z": "done"}
    assert manifest(tmp_path)["counts"] == {"done": 2, "failed": 2} and manifest(tmp_path)["finished"]
    assert not list((tmp_path / "out").glob(".tmp*"))


def test_a_rerun_keeps_what_is_intact_and_mends_the_rest(
    axial_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("abc"):
        write_subject(tmp_path / "in", name, THREE, seed=seed)
    assert infer(axial_weights, tmp_path) == 0
    first = manifest(tmp_path)
    outputs = {name: tmp_path / "out" / f"{name}-t2f.nii.gz" for name in "abc"}
    assert {n: entries(tmp_path)[n]["sha256"]["t2f"] for n in "abc"} == {
        n: sha256_of(p) for n, p in outputs.items()
    }
    before = {name: path.stat() for name, path in outputs.items()}
    whole = outputs["b"].read_bytes()
    outputs["b"].write_bytes(whole[:-100])
    outputs["c"].unlink()
    assert infer(axial_weights, tmp_path) == 0
    assert [entries(tmp_path)[n]["status"] for n in "abc"] == ["kept", "done", "done"]
    assert outputs["b"].read_bytes() == whole and outputs["a"].stat().st_mtime_ns == before["a"].st_mtime_ns
    assert {e["case"]: e["sha256"] for e in first["cases"]} == {
        e["case"]: e["sha256"] for e in manifest(tmp_path)["cases"]
    }
    assert entries(tmp_path)["a"]["seconds"]["network"] > 0
    kept = manifest(tmp_path)
    for _ in range(2):  # the workers stay as long as a case refers to them
        assert infer(axial_weights, tmp_path) == 0
        again = manifest(tmp_path)
        assert [e["status"] for e in again["cases"]] == ["kept"] * 3
        assert [(e["worker"], e["reason"]) for e in again["cases"]] == [
            (e["worker"], "") for e in kept["cases"]
        ]
        assert again["workers"] == kept["workers"] and len(kept["workers"]) == 2
    assert infer(axial_weights, tmp_path, "--overwrite") == 0
    assert [entries(tmp_path)[n]["status"] for n in "abc"] == ["done"] * 3
    assert outputs["a"].stat().st_mtime_ns != before["a"].st_mtime_ns
    assert "kept, made by an earlier run" in capsys.readouterr().out


def test_a_folder_does_not_mix_weights(
    axial_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_subject(tmp_path / "in", "a", THREE)
    assert infer(axial_weights, tmp_path) == 0
    volume = (tmp_path / "out" / "a-t2f.nii.gz").read_bytes()
    other = export(tmp_path / "other", ["axial"], seed=1)
    assert infer(other, tmp_path) == 1
    assert "made by other weights" in capsys.readouterr().err
    assert (tmp_path / "out" / "a-t2f.nii.gz").read_bytes() == volume
    assert infer(other, tmp_path, "--overwrite") == 0
    assert (tmp_path / "out" / "a-t2f.nii.gz").read_bytes() != volume


def test_a_killed_run_leaves_its_identity(
    axial_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_subject(tmp_path / "in", "a", THREE)
    write_subject(tmp_path / "in", "b", THREE, seed=1)
    other = export(tmp_path / "other", ["axial"], seed=1)

    def killed(*arguments: object) -> None:
        before = manifest(tmp_path)
        assert before["finished"] is False and before["identity"]["members"][0]["weights_sha256"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("brasyn_dist.inference.api.run_jobs", killed)
        assert infer(axial_weights, tmp_path) == 130
    assert manifest(tmp_path)["finished"] is False
    assert infer(other, tmp_path) == 1
    assert infer(axial_weights, tmp_path) == 0 and manifest(tmp_path)["finished"]


def test_nothing_to_do_at_all(
    axial_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert infer(axial_weights, tmp_path) == 1
    (tmp_path / "in").mkdir()
    assert infer(axial_weights, tmp_path) == 1
    assert "no BraTS case found" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer(axial_weights, tmp_path, "--batch-size", "0")


def test_an_output_folder_inside_the_input_is_not_a_case(axial_weights: Path, tmp_path: Path) -> None:
    folder = write_subject(tmp_path / "in", "a", THREE)
    words = [
        "--weights",
        axial_weights,
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "in" / "completed",
    ]
    for number in range(3):
        assert main([*map(str, words), "--device", "cpu"]) == 0
        made = {p.name for p in (tmp_path / "in" / "completed").iterdir()}
        assert made == {"manifest.json", "a-t2f.nii.gz"}, number
    assert [c.name for c in find_cases(tmp_path / "in")] == [folder.name]


def test_infer_single(axial_weights: Path, tmp_path: Path) -> None:
    folder = write_subject(tmp_path / "in", "a", MODALITIES)
    given = {m: folder / f"a-{m}.nii.gz" for m in MODALITIES}
    options = {"weights": axial_weights, "device": "cpu", "batch_size": 8}
    assert infer(axial_weights, tmp_path, "--modality", "t2f") == 0
    made = brasyn_dist.infer_single(
        **(given | {"t2f": None}), output=tmp_path / "new" / "flair.nii.gz", **options
    )
    assert made == {"t2f": tmp_path / "new" / "flair.nii.gz"}
    assert made["t2f"].read_bytes() == (tmp_path / "out" / "a-t2f.nii.gz").read_bytes()
    both = brasyn_dist.infer_single(
        t1c=str(given["t1c"]), t2w=str(given["t2w"]), output=tmp_path / "two", **options
    )
    assert both == {"t1n": tmp_path / "two" / "a-t1n.nii.gz", "t2f": tmp_path / "two" / "a-t2f.nii.gz"}
    assert all(nibabel.load(path).shape == (48, 40, 31) for path in both.values())
    upper = brasyn_dist.infer_single(**(given | {"t2f": None}), output=tmp_path / "X.NII.GZ", **options)
    assert upper == {"t2f": tmp_path / "X.NII.GZ"}
    assert upper["t2f"].read_bytes() == made["t2f"].read_bytes()
    with pytest.raises(ConfigError, match="give one to 3"):
        brasyn_dist.infer_single(**given, output=tmp_path / "x.nii.gz", **options)
    with pytest.raises(ConfigError, match="must be a folder"):
        brasyn_dist.infer_single(t1c=given["t1c"], output=tmp_path / "x.nii.gz", **options)
    with pytest.raises(DataError, match=r"absent\.nii\.gz"):
        brasyn_dist.infer_single(t1c=tmp_path / "absent.nii.gz", output=tmp_path / "two", **options)


def test_a_model_of_two_modalities_with_other_names(tmp_path: Path) -> None:
    modality_set = ModalitySet("diffusion", ("dwi", "adc"))
    t1c = PUBLISHED.modalities["t1c"]
    preprocessing = Preprocessing(Statistics({"dwi": t1c, "adc": t1c}), ("axial",), modality_set=modality_set)
    config = GeneratorConfig(image_size=48, base_channels=8)
    generator = build_generator(config, 0, modality_set=modality_set)
    generator.save_pretrained(tmp_path / "weights", preprocessing)
    volumes = {"dwi": brain(0)["t1c"], "adc": brain(0)["t1n"]}
    write_subject(tmp_path / "in", "a", ["dwi"], volumes=volumes)
    write_subject(tmp_path / "in", "b", ["dwi", "adc"], volumes=volumes)
    assert infer(tmp_path / "weights", tmp_path) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"manifest.json", "a-adc.nii.gz"}
    made = np.asanyarray(nibabel.load(tmp_path / "out" / "a-adc.nii.gz").dataobj)
    assert made.any() and not made[volumes["dwi"] == 0].any()
    options = {"weights": tmp_path / "weights", "device": "cpu", "output": tmp_path / "adc.nii.gz"}
    single = brasyn_dist.infer_single(dwi=tmp_path / "in/a/a-dwi.nii.gz", **options)
    np.testing.assert_array_equal(nibabel.load(single["adc"]).dataobj, made)
    with pytest.raises(ConfigError, match="give one to 1 of dwi, adc"):
        brasyn_dist.infer_single(t1c=tmp_path / "in/a/a-dwi.nii.gz", **options)
    assert modality_set_of(tmp_path / "out") == modality_set
    assert [p.modality for p in find_predictions(tmp_path / "out", modality_set)] == ["adc"]
    with pytest.raises(ConfigError, match="choose from dwi, adc"):
        brasyn_dist.infer_batch(
            tmp_path / "in", tmp_path / "out", weights=tmp_path / "weights", modalities=["t1c"], device="cpu"
        )


def test_infer_batch_from_python(axial_weights: Path, tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "a", THREE)
    lines: list[str] = []
    results = brasyn_dist.infer_batch(
        tmp_path / "in", tmp_path / "out", weights=axial_weights, device="cpu", say=lines.append
    )
    assert [(r.case, r.status) for r in results] == [("a", "done")]
    assert lines[0].startswith("1/1 a: t2f from t1c, t1n, t2w: ") and "network" in lines[0]
    with pytest.raises(ConfigError, match="unknown modality t3"):
        brasyn_dist.infer_batch(tmp_path / "in", tmp_path / "out", weights=axial_weights, modalities=["t3"])


def test_the_package_offers_its_api_and_imports_cheaply() -> None:
    assert brasyn_dist.Generator.__name__ == "Generator"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = brasyn_dist.nonsense
    code = (
        "import sys, brasyn_dist, brasyn_dist.infer; print('torch' in sys.modules, 'nibabel' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    """240 x 240 x 155 as BraTS has it, through the narrowest network."""
    volumes = brain(shape=(240, 240, 155))
    for volume in volumes.values():
        volume[:, :, 90:] = 0  # some 60 slices have brain: enough, and quicker
    write_subject(tmp_path / "in", "a", THREE, volumes=volumes)
    config = GeneratorConfig(base_channels=8)
    build_generator(config, 0).save_pretrained(tmp_path / "weights", Preprocessing(PUBLISHED, ("axial",)))
    assert infer(tmp_path / "weights", tmp_path) == 0
    image = nibabel.load(tmp_path / "out" / "a-t2f.nii.gz")
    assert image.shape == (240, 240, 155) and image.get_data_dtype() == np.int16
    background = sum((volumes[m] <= 0).astype(int) for m in THREE) >= 2
    made = np.asanyarray(image.dataobj)
    assert not made[background].any()
    # Untrained weights give values below 0 in a part of the brain, which become 0.
    assert np.count_nonzero(made) > 0.6 * np.count_nonzero(~background)
