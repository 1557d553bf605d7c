"""Which model runs over which views, on which device."""

import shutil
from pathlib import Path

import pytest
import torch

from brasyn_dist.errors import CheckpointError, ConfigError
from brasyn_dist.inference.ensemble import choose_device, choose_views, load_members

HERE = Path("weights")


@pytest.mark.parametrize(
    ("trained", "wanted", "expected"),
    [
        (["axial"], None, ("axial",)),
        (["sagittal", "axial"], None, ("axial", "sagittal")),
        (["axial", "sagittal"], ["sagittal"], ("sagittal",)),
        (["axial", "sagittal", "coronal"], ["coronal", "axial", "coronal"], ("axial", "coronal")),
        ([], None, ("axial",)),
        ([], ["coronal"], ("coronal",)),
    ],
)
def test_views(trained: list[str], wanted: list[str] | None, expected: tuple[str, ...]) -> None:
    assert choose_views(trained, wanted, False, HERE) == expected


def test_views_that_the_model_does_not_know_take_an_explicit_word() -> None:
    with pytest.raises(ConfigError, match=r"trained on axial slices, not on sagittal, coronal.*--any-view"):
        choose_views(["axial"], ["axial", "sagittal", "coronal"], False, HERE)
    assert choose_views(["axial"], ["sagittal"], True, HERE) == ("sagittal",)
    with pytest.raises(ConfigError, match="unknown view oblique"):
        choose_views(["axial"], ["oblique"], True, HERE)


def test_a_run_folder_stands_for_its_export(weights: Path, tmp_path: Path) -> None:
    shutil.copytree(weights, tmp_path / "run" / "export")
    (direct, *_), members = (
        load_members(weights, torch.device("cpu")),
        load_members(tmp_path / "run", torch.device("cpu")),
    )
    assert [m.view for m in members] == ["axial", "sagittal", "coronal"]
    assert members[0].folder == tmp_path / "run" / "export"
    assert {m.weights_sha256 for m in members} == {direct.weights_sha256}
    assert not members[0].generator.training and members[0].preprocessing.statistics
    assert members[0].generator is members[1].generator


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no exported generator"):
        load_members(tmp_path, torch.device("cpu"))


def test_devices() -> None:
    assert choose_device("cpu", "bf16") == torch.device("cpu")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_device("cpu", "fp16")
    for name in ("no-such-device", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used"):
            choose_device(name, "no")
