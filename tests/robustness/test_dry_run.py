"""Kind 2: `--dry-run` refuses what the run would refuse at its start, and leaves no trace."""

from pathlib import Path

import pytest

from brasyn_dist.cli.train import main
from tests.distributed.launch import SMALL
from tests.inference.small import export
from tests.small import small_shard_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_shard_set(tmp_path_factory.mktemp("dry") / "shards")


def dry(shards: Path, runs: Path, *options: str) -> int:
    return main([*SMALL, f"data.shards={shards}", f"runs_dir={runs}", "name=x", "--dry-run", *options])


def test_a_run_that_could_start(shards: Path, tmp_path: Path):
    weights = export(tmp_path / "weights", view_embedding=False)
    more = (f"checkpoint.init_from={weights}", "generator.transformer_layers=4", "generator.heads=16")
    assert dry(shards, tmp_path / "runs", *more, "runtime.rank_shares=[2, 1]") == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("checkpoint.resume={tmp}/nowhere", "nowhere: incomplete, manifest.json is missing"),
        ("checkpoint.resume=never", "has checkpoints and checkpoint.resume=never"),
        ("checkpoint.resume=auto", "none of 1 checkpoints is intact"),
        ("checkpoint.init_from={tmp}/nowhere", "nowhere: no exported generator"),
        ("checkpoint.init_from={tmp}/weights", "more differences; give weights of the same configuration"),
        ("telemetry.wandb=online", "WANDB_API_KEY"),
        ("runs_dir={tmp}/file", "file: Not a directory"),
        ("runs_dir={tmp}/checkpoints", "x/checkpoints: Not a directory; a file is in the place of a folder"),
        ("runs_dir={tmp}/export", "x/export: Not a directory; a file is in the place of a folder"),
        ("data.cohorts=[elsewhere]", "elsewhere"),
    ],
)
def test_a_run_that_could_not_start(
    option: str, expected: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "file").touch()
    for part in ("checkpoints", "export"):
        (tmp_path / part / "x").mkdir(parents=True)
        (tmp_path / part / "x" / part).touch()
    if option.startswith("checkpoint.init_from"):
        export(tmp_path / "weights")  # of another size
    elif option.startswith("checkpoint.resume"):
        (tmp_path / "runs/x/checkpoints/step-00000003").mkdir(parents=True)
    assert dry(shards, tmp_path / "runs", option.format(tmp=tmp_path)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    error = "\n".join(line for line in lines if not line.startswith("warning: "))
    assert error.startswith("error: ") and expected in error and "\n" not in error
