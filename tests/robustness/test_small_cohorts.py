"""Kind 10: small cohorts say at once what is missing; brains that do not fit are reported before training."""

from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.brats import Case
from brasyn_dist.cli import cross_validate, demo
from brasyn_dist.data.loading.storage import open_shard_set
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.errors import BrasynError, ConfigError
from brasyn_dist.training.window_check import describe_brain_outside
from tests.data.case_files import MODALITIES, save, write_case


def cohort(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_case(root, name, seed)
    return root


@pytest.mark.parametrize("names", [["BraTS-GLI-00000-000"], ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001"]])
def test_the_demo_needs_two_patients(tmp_path, capsys, names):
    data = cohort(tmp_path / "gli", *names)
    assert demo.main(["--data", str(data), "--out", str(tmp_path / "demo")]) == 1
    text = capsys.readouterr().err
    assert "patients BraTS-GLI-00000: a cohort of at least two is needed" in text
    assert not (tmp_path / "demo" / "shards").exists(), "nothing may start"


@pytest.mark.parametrize("count", [2, 3])
def test_two_patients_are_enough_for_the_demo(tmp_path, count):
    demo.check_patients([cohort(tmp_path / "gli", *(f"BraTS-GLI-0000{i}-000" for i in range(count)))])


def test_a_patient_in_each_of_two_cohorts_is_not_enough(tmp_path):
    roots = [cohort(tmp_path / kind, f"BraTS-{kind}-00000-000") for kind in ("GLI", "MET")]
    with pytest.raises(BrasynError, match="patients BraTS-GLI-00000, BraTS-MET-00000"):
        demo.check_patients(roots)


def test_cross_validation_of_one_patient(tmp_path, capsys):
    data = cohort(tmp_path / "gli", "BraTS-GLI-00000-000", "BraTS-GLI-00000-001")
    assert cross_validate.main([str(data), "--out", str(tmp_path / "out")]) == 1
    assert "one patient (BraTS-GLI-00000): at least two are needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("patients", "folds"), [(2, 2), (3, 2), (3, 3)])
def test_folds_of_few_patients(patients, folds):
    cases = [Case(f"BraTS-GLI-0000{i}-00{t}", Path()) for i in range(patients) for t in range(2)]
    split = cross_validate.split_into_folds(cases, folds, 0)
    assert sorted(c.name for fold in split for c in fold) == sorted(c.name for c in cases)
    assert sum(len({c.patient for c in fold}) for fold in split) == patients
    with pytest.raises(ConfigError, match=f"--folds {patients + 1}: from 2 to {patients}"):
        cross_validate.split_into_folds(cases, patients + 1, 0)


@pytest.mark.parametrize("patients", [1, 2, 3])
def test_sharding_says_when_nobody_is_held_out(tmp_path, caplog, patients):
    root = cohort(tmp_path / "gli", *(f"BraTS-GLI-0000{i}-000" for i in range(patients)))
    index = make_shards([root], tmp_path / "out", ShardOptions(("axial",), minimum_foreground=50))
    held_out = sum(case.split == "val" for case in index.header.cases)
    assert held_out == min(1, patients - 1)
    assert ("no case is held out" in caplog.text) == (held_out == 0)


def blocks(root: Path, sides: tuple[int, ...]) -> Path:
    """Cases whose brain is a cube of this side, in the middle of 48 x 48 x 20 voxels."""
    for number, side in enumerate(sides):
        name = f"BraTS-GLI-{number:05d}-000"
        low = (48 - side) // 2
        for seed, modality in enumerate(MODALITIES):
            volume = np.zeros((48, 48, 20), np.int16)
            values = np.random.default_rng(seed + 10 * number).integers(1, 900, (side, side, 14))
            volume[low : low + side, low : low + side, 3:17] = values
            save(root / name / f"{name}-{modality}.nii.gz", volume)
    return root


@pytest.mark.parametrize(
    ("window", "share"),
    [((48, 48), None), ((40, 40), None), ((32, 32), "36.0%"), ((40, 20), "50.0%"), ((240, 240), None)],
)
def test_brain_outside_the_window_is_reported(tmp_path, window, share):
    root = blocks(tmp_path / "gli", (40, 20, 16))
    make_shards(
        [root], tmp_path / "out", ShardOptions(("axial",), validation_fraction=0, minimum_foreground=50)
    )
    training = open_shard_set(tmp_path / "out").select("train")
    text = describe_brain_outside(training, window)
    if share is None:
        assert text == ""
    else:
        height, width = window
        assert text.startswith(f"{share} of the brain in BraTS-GLI-00000-000/axial/")
        assert f"outside the {height} x {width} pixels" in text and "image_size" in text


@pytest.mark.slow
def test_training_reports_it_before_the_first_step(tmp_path, capsys):
    from brasyn_dist.cli import train

    root = blocks(tmp_path / "gli", (40, 20))
    make_shards(
        [root], tmp_path / "out", ShardOptions(("axial",), validation_fraction=0, minimum_foreground=50)
    )
    options = ["segmenter.image_size=32", "segmenter.widths=[8,16]", "training.global_batch_size=4", "name=s"]
    options += ["training.max_steps=1", "telemetry.report=false", f"runs_dir={tmp_path / 'runs'}"]
    assert train.main(["task=segmenter", *options, f"data.shards={tmp_path / 'out'}"]) == 0
    text = "".join(capsys.readouterr())
    assert "36.0% of the brain" in text
