"""The MONAI bundle, executed by MONAI itself, gives the volumes of `brasyn infer`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from brasyn_dist.brats import MODALITIES
from brasyn_dist.cli.export import main as export_command
from brasyn_dist.config import SegmenterConfig, UNetConfig
from brasyn_dist.inference.api import infer_batch
from brasyn_dist.models.registry import build_generator
from brasyn_dist.models.segmenter import build_segmenter
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.conftest import REPOSITORY
from tests.inference.small import write_subject

TARGET = "t2f"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the recommended network at a small size: 2.5-D, slices that are not square, normalised by case."""
    folder = tmp_path_factory.mktemp("bundle")
    config = UNetConfig(image_size=(48, 32), widths=(16, 16), full_channels=16, condition=16, context=1)
    generator = build_generator(config, 1)
    with torch.no_grad():  # a new U-Net gives the mean of the inputs
        generator.output.weight.add_(0.1)
    scales = IntensityScaleModel.fit(np.array([[100.0, 200, 300, 400], [110.0, 190, 330, 380]]))
    views = ("sagittal", "coronal")
    generator.save_pretrained(folder / "export", Preprocessing(PUBLISHED, views, "case", scales))
    assert (
        export_command(
            [str(folder / "export"), str(folder / "out"), "--format", "monai-bundle", "--name", "brain"]
        )
        == 0
    )
    return folder / "out"


def test_its_files_and_metadata(bundle: Path):
    files = sorted(str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file())
    assert files == [
        "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/config.json", "models/model.safetensors",
    ]  # fmt: skip
    values = json.loads((bundle / "configs/metadata.json").read_text())
    # The keys that MONAI's schema requires.
    required = {
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "task", "description", "authors", "copyright", "network_data_format",
    }  # fmt: skip
    assert required <= set(values)
    image = values["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 4 and list(image["channel_def"]) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_monai_runs_it_on_a_folder_of_cases(bundle: Path, tmp_path: Path):
    pytest.importorskip("monai")
    pytest.importorskip("fire")
    for number in range(2):
        write_subject(
            tmp_path / "cases", f"BraTS-GLI-{number:05d}-000", [m for m in MODALITIES if m != TARGET], number
        )
    words = [
        "--config_file",
        "configs/inference.json",
        "--dataset_dir",
        tmp_path / "cases",
        "--output_dir",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *map(str, words)],
        cwd=bundle,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    infer_batch(tmp_path / "cases", tmp_path / "expected", weights=bundle / "models", device="cpu")
    expected = sorted((tmp_path / "expected").glob("*.nii.gz"))
    assert len(expected) == 2
    for path in expected:
        ours, theirs = (np.asanyarray(nibabel.load(p).dataobj) for p in (path, tmp_path / "out" / path.name))
        assert ours.any() and np.array_equal(ours, theirs)


def parsed(bundle: Path, **options: str) -> Any:
    """The bundle's configuration, read by MONAI."""
    parser = pytest.importorskip("monai.bundle").ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    for name, value in {"bundle_root": str(bundle), **options}.items():
        parser[name] = value
    return parser


def test_monai_reads_the_network(bundle: Path):
    network = parsed(bundle).get_parsed_content("network_def")
    assert network.kind == "generator" and network.preprocessing.views == ("sagittal", "coronal")


def test_a_case_that_fails_ends_the_bundle_with_a_message(bundle: Path, tmp_path: Path):
    folder = write_subject(tmp_path / "cases", "BraTS-GLI-00000-000", ["t1c", "t1n", "t2w"])
    (folder / f"{folder.name}-t1n.nii.gz").write_bytes(b"")
    options = {"dataset_dir": str(tmp_path / "cases"), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises(SystemExit, match="a case failed"):
        parsed(bundle, **options).get_parsed_content("run")


def test_a_segmenter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    build_segmenter(SegmenterConfig(image_size=48, widths=(8, 16)), 1).save_pretrained(
        tmp_path / "s", Preprocessing(PUBLISHED)
    )
    assert export_command([str(tmp_path / "s"), str(tmp_path / "out"), "--format", "monai-bundle"]) == 1
    assert "a MONAI bundle is made of a generator, this is a segmenter" in capsys.readouterr().err
