"""Files by path, and packaged files by name."""

from pathlib import Path

import pytest

from brasyn_dist.common.resources import find_resource, resource_folder


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml"])
def test_a_packaged_file_is_found_by_name_also_beside_a_folder_of_that_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # ./demo.sh writes its results to this folder
    assert find_resource("configs", name) == resource_folder("configs") / "demo.yaml"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("r3", "thesis/r3.yaml"),
        ("configs/r3.yaml", "thesis/r3.yaml"),
        ("thesis/r3", "thesis/r3.yaml"),
        ("published/r3.yaml", "thesis/published/r3.yaml"),
    ],
)
def test_files_in_subfolders_are_found_by_name_the_outermost_first(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert find_resource("configs", name) == resource_folder("configs") / place


def test_an_existing_file_comes_first_and_unknown_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("name: mine")
    assert find_resource("configs", "demo.yaml") == Path("demo.yaml")
    assert find_resource("configs", "nothing") == Path("nothing")
