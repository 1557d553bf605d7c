"""What `--weights` may say, and that nothing is guessed."""

from pathlib import Path

import pytest

from brasyn_dist.errors import ConfigError
from brasyn_dist.inference.ensemble import InferenceConfig, MemberConfig, load_inference


def test_one_folder_and_several_with_views() -> None:
    assert load_inference("runs/r8") == InferenceConfig((MemberConfig("runs/r8"),))
    assert load_inference(Path("runs/r8"), ["sagittal"]).members == (MemberConfig("runs/r8", ("sagittal",)),)
    words = ["runs/r6:axial", "runs/r7:sagittal,coronal", "runs/r8"]
    assert load_inference(words).members == (
        MemberConfig("runs/r6", ("axial",)),
        MemberConfig("runs/r7", ("sagittal", "coronal")),
        MemberConfig("runs/r8"),
    )


def test_a_folder_whose_name_has_a_colon(tmp_path: Path) -> None:
    (tmp_path / "a:axial").mkdir()
    assert load_inference(tmp_path / "a:axial").members[0].weights == str(tmp_path / "a:axial")
    assert load_inference("c:/runs/r8").members == (MemberConfig("c:/runs/r8"),)


def test_a_yaml_file_and_what_is_laid_over_it(tmp_path: Path) -> None:
    base = "members:\n  - weights: runs/r6\n    views: [axial]\n  - weights: runs/r7\n    views: [sagittal]\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "r9.yaml").write_text("base: base.yaml\nfusion: a.json\n")
    plan = load_inference([tmp_path / "r9.yaml"])
    assert plan.members == (MemberConfig("runs/r6", ("axial",)), MemberConfig("runs/r7", ("sagittal",)))
    assert plan.fusion == "a.json" and not plan.any_view
    over = load_inference(str(tmp_path / "r9.yaml"), any_view=True, fusion="b.json")
    assert over.fusion == "b.json" and over.any_view


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: []", "members: empty"),
        ("members:\n  - views: [axial]", "each needs `weights`"),
        ("members:\n  - weights: a\n    views: [oblique]", "unknown view oblique"),
        ("members:\n  - weights: a\n    view: axial", "unknown option members.view"),
        ("batch_size: 3", "unknown option batch_size"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_inference(tmp_path / "x.yaml")


def test_contradictions(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("members:\n  - weights: a\n")
    with pytest.raises(ConfigError, match="stands alone"):
        load_inference([tmp_path / "x.yaml", "runs/r8"])
    with pytest.raises(ConfigError, match="already given axial"):
        load_inference(["runs/r6:axial"], ["axial"])
    with pytest.raises(ConfigError, match="unknown view axail"):
        load_inference(["runs/r6:axail"])
