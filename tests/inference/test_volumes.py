"""Networks of volumes in inference: windows equal the whole volume, refiner and 3-D exports by the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.brats import MODALITIES
from brasyn_dist.cli.infer import main
from brasyn_dist.config import RefinerConfig, VolumeUNetConfig
from brasyn_dist.data.nifti import read_volume
from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.ensemble import load_inference, load_members
from brasyn_dist.inference.sliding_window import MARGIN, brain_box, slide
from brasyn_dist.inference.synthesis import SynthesisOptions, brain_mask, synthesise_case, synthesise_patches
from brasyn_dist.models.export import export_network
from brasyn_dist.models.pretrained import REFINER, VOLUME
from brasyn_dist.models.volume_network import VolumeNetwork, build_volume_network
from brasyn_dist.preprocessing.intensity_scale import IntensityScaleModel
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.inference.small import brain, four, write_subject

pytest.importorskip("monai")
CPU = torch.device("cpu")
PATCH = (24, 16, 16)
THREE = ["t1c", "t1n", "t2w"]
CASE = Preprocessing(
    PUBLISHED,
    normalisation="case",
    intensity_scale=IntensityScaleModel.fit(
        np.array([[500, 600, 700, 800], [900, 700, 800, 600]], np.float32)
    ),
    patch=PATCH,
)


def network(kind: str, seed: int = 0, preprocessing: Preprocessing = CASE) -> VolumeNetwork:
    """A network whose layers that start at zero have random weights."""
    config = (
        VolumeUNetConfig(widths=(16,), units=1, condition=8)
        if kind == VOLUME
        else RefinerConfig(channels=4, layers=1, smoothing=1)
    )
    made = build_volume_network(kind, config, seed)
    noise = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if not parameter.detach().any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=noise)
    made.preprocessing = preprocessing
    return made.eval()


def export(folder: Path, kind: str, seed: int = 0) -> Path:
    network(kind, seed).save_pretrained(folder)
    return folder


def infer(root: Path, weights: Path, *options: str) -> int:
    words = ["--weights", weights, "--input", root / "in", "--output", root / "out", "--device", "cpu"]
    return main([*map(str, words), *options])


def test_windows_with_overlap_equal_the_whole_volume() -> None:
    """Up to 1 % of the correction on average, where the brain can be: MARGIN voxels from the border.

    Three voxels at the border of a window see zeros beyond it. They have little weight, except near the border
    of the volume, where the voxel is far from the middle of every window.
    """
    made = network(REFINER, preprocessing=replace(CASE, patch=(24, 24, 24)))
    noise = torch.Generator().manual_seed(3)
    x, stage1 = (torch.randn(1, n, 40, 40, 36, generator=noise) for n in (4, 1))
    with torch.no_grad():
        whole = made.synthesise(x, (0, 1, 2), 3, stage1)
        windows = slide(made, x, (0, 1, 2), 3, stage1, overlap=0.5)
        one = slide(made, x[..., :24, :24, :24], (0, 1, 2), 3, stage1[..., :24, :24, :24])
        alone = made.synthesise(x[..., :24, :24, :24], (0, 1, 2), 3, stage1[..., :24, :24, :24])
    torch.testing.assert_close(one, alone)
    inside = (..., *[slice(MARGIN, -MARGIN)] * 3)
    change = (whole - stage1)[inside].abs().mean()
    assert change > 0.05
    assert (windows - whole)[inside].abs().mean() < 0.01 * change


def test_windows_that_disagree_make_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window has a constant value, 0 or 1: neighbouring voxels of the result differ by a fraction of 1."""
    made, windows = network(VOLUME, preprocessing=replace(CASE, patch=(64, 64, 64))), iter(range(100))

    def constant(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full_like(x[:, :1], float(next(windows).bit_count() % 2))

    monkeypatch.setattr(made, "synthesise", constant)
    result = slide(made, torch.zeros(1, 4, 112, 112, 112), (0, 1, 2), 3)
    assert next(windows) == 8 and result.min() < 0.01 and result.max() > 0.99
    assert max(float(result.diff(dim=axis).abs().max()) for axis in (2, 3, 4)) < 0.25


def test_the_box_contains_the_brain_and_its_margin() -> None:
    volumes = torch.from_numpy(four(brain()))
    mask = brain_mask(volumes, (0, 1, 2))
    box = brain_box(mask)
    assert mask[box].sum() == mask.sum() and mask[box].numel() < mask.numel()
    first = mask.any(2).any(1).nonzero()[0, 0]
    assert box[0].start == max(0, int(first) - MARGIN)


@pytest.mark.parametrize("kind", [VOLUME, REFINER])
def test_the_result_is_background_outside_the_brain_and_missing_volumes_do_not_matter(kind: str) -> None:
    volumes, stage1 = torch.from_numpy(four(brain())), torch.from_numpy(brain(5)["t2f"].astype(np.int32))
    other = volumes.clone()
    other[MODALITIES.index("t2f")] = 77
    first, second = (
        synthesise_patches(network(kind), images, THREE, "t2f", stage1 if kind == REFINER else None)
        for images in (volumes, other)
    )
    assert torch.equal(first, second)
    mask = brain_mask(volumes, [MODALITIES.index(m) for m in THREE])
    assert not first[~mask].any() and first[mask].any()


def test_the_scale_of_the_first_stage_does_not_matter_with_normalisation_case() -> None:
    volumes, stage1 = torch.from_numpy(four(brain())), torch.from_numpy(brain(5)["t2f"].astype(np.int32))
    one, two = (synthesise_patches(network(REFINER), volumes, THREE, "t2f", n * stage1) for n in (1, 4))
    torch.testing.assert_close(one, two)


def test_mirrored_windows_are_averaged() -> None:
    volumes = torch.from_numpy(four(brain()))
    made = network(VOLUME)
    plain = synthesise_patches(made, volumes, THREE, "t2f")
    mirrored = synthesise_patches(made, volumes.flip(1), THREE, "t2f").flip(0)
    both = synthesise_patches(made, volumes, THREE, "t2f", None, SynthesisOptions(mirror=True))
    inside = (plain > 0) & (mirrored > 0)  # negative values are set to 0 after the average
    torch.testing.assert_close(both[inside], ((plain + mirrored) / 2)[inside], rtol=1e-4, atol=1e-2)
    assert (plain - mirrored)[inside].abs().max() > 1


def test_command_with_a_network_of_volumes(tmp_path: Path) -> None:
    write_subject(tmp_path / "in", "a", THREE)
    weights = export(tmp_path / "weights", VOLUME)
    assert infer(tmp_path, weights) == 0
    images = four(brain() | {"t2f": np.zeros_like(brain()["t2f"])})
    expected = synthesise_case(load_members(weights, CPU), images, THREE, ["t2f"])["t2f"]
    np.testing.assert_array_equal(read_volume(tmp_path / "out/a-t2f.nii.gz").array, expected)
    identity = json.loads((tmp_path / "out/manifest.json").read_text())["identity"]
    assert [member["view"] for member in identity["members"]] == ["volume"]


def test_command_with_a_refiner(axial_weights: Path, tmp_path: Path) -> None:
    """The manifest names both stages; the result is the refined first stage; another refiner is refused."""
    write_subject(tmp_path / "in", "a", THREE)
    refiner = export(tmp_path / "refiner", REFINER)
    assert infer(tmp_path, axial_weights, "--refiner", str(refiner)) == 0
    images = four(brain() | {"t2f": np.zeros_like(brain()["t2f"])})
    first = synthesise_case(load_members(axial_weights, CPU), images, THREE, ["t2f"])["t2f"]
    second = synthesise_patches(
        network(REFINER), torch.from_numpy(images), THREE, "t2f", torch.from_numpy(first)
    )
    made = read_volume(tmp_path / "out/a-t2f.nii.gz").array
    np.testing.assert_array_equal(made, second.round().numpy())
    assert (made != first).any()
    values = json.loads((tmp_path / "out/manifest.json").read_text())
    exported = json.loads((refiner / "config.json").read_text())
    assert values["identity"]["refiner_sha256"] == exported["weights_sha256"]
    assert len(values["identity"]["members"]) == 1 and values["details"]["refiner"] == str(refiner)
    other = export(tmp_path / "other", REFINER, seed=1)
    assert infer(tmp_path, axial_weights, "--refiner", str(other)) == 1


def test_kinds_in_the_wrong_place_are_refused(
    axial_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refiner, volume = export(tmp_path / "refiner", REFINER), export(tmp_path / "volume", VOLUME)
    with pytest.raises(ConfigError, match="--refiner"):
        load_members(refiner, CPU)
    with pytest.raises(ConfigError, match="no views"):
        load_members(load_inference(f"{volume}:axial"), CPU)
    write_subject(tmp_path / "in", "a", THREE)
    assert infer(tmp_path, axial_weights, "--refiner", str(volume)) == 1
    assert "weights of task volume, where task refiner is needed" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="task volume has no export as monai-bundle; leave --format out"):
        export_network(volume, tmp_path / "bundle", "monai-bundle", "NAME")
    assert not (tmp_path / "bundle").exists()
