"""The command line: help, usage errors, lists, order of words, launcher extras."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from brasyn_dist.brats import VIEWS
from brasyn_dist.cli import main as brasyn
from brasyn_dist.cli.command import View, spread_lists
from brasyn_dist.cli.infer import main as infer
from brasyn_dist.cli.shard import main as shard
from brasyn_dist.cli.train import main as train
from brasyn_dist.common import optional_packages
from brasyn_dist.config import Config, SegmenterRunConfig, all_options
from tests.conftest import REPOSITORY

RUN = [sys.executable, "-m", "brasyn_dist"]


def test_overview_is_quick_and_lists_every_command(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*RUN, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0 and min(seconds) < 0.3
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(brasyn.COMMANDS)


@pytest.mark.parametrize("name", [*brasyn.COMMANDS, *brasyn.INTERNAL])
def test_every_command_describes_each_option_with_type_and_default(
    name: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as end:
        brasyn.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: brasyn {name} ") and brasyn.description(name) in text
    entries = text.partition("\nOptions:")[2].partition("\n\n")[0].split("\n  --")[1:]
    assert entries and [entry for entry in entries if len(entry.split(maxsplit=1)) < 2] == []


def test_help_of_train_lists_every_option_of_every_task(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train(["--help"])
    text = capsys.readouterr().out
    for kind in (Config, SegmenterRunConfig):
        for name, option in all_options(kind):
            assert f"  {name}=" in text and option.allowed in text
    assert "checkpoint.keep=2  (int of at least 2 " in text


@pytest.mark.parametrize(
    "words",
    [
        ["--weights", "w", "--input", "i"],
        ["--weights", "w", "--input", "i", "--output", "o", "--workers", "0"],
        ["--weights", "w", "--input", "i", "--output", "o", "--views", "oblique"],
        ["--weights", "--input", "i", "--output", "o"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        infer(words)
    assert end.value.code == 2 and "Usage: brasyn infer" in capsys.readouterr().err


def test_options_that_exclude_each_other():
    with pytest.raises(SystemExit) as end:
        shard(["c", "--out", "o", "--split", "s", "--validation-fraction", "0.5"])
    assert end.value.code == 2


def test_unknown_command_is_named(capsys: pytest.CaptureFixture[str]):
    assert brasyn.main(["tarin"]) == 2 and "tarin" in capsys.readouterr().err


def test_an_error_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert brasyn.main(["report", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "none" in error and "Traceback" not in error


def test_several_values_after_one_option():
    words = ["--views", "axial", "coronal", "--out", "x", "c", "--views", "sagittal", "--", "--views"]
    assert spread_lists(words, ("--views",)) == [
        "--views", "axial", "--views", "coronal", "--out", "x", "c", "--views", "sagittal", "--", "--views",
    ]  # fmt: skip
    options = shard.parse(["a", "b", "--views", "axial", "sagittal", "--out", "x"])
    assert options.views == ["axial", "sagittal"] and options.cohorts == [Path("a"), Path("b")]
    assert tuple(View) == VIEWS


def test_words_of_train_in_any_order_and_what_launchers_add():
    for words in (
        ["seed=1", "--config", "r3", "name=x", "--local_rank=0", "--dry-run"],
        ["--dry-run", "--local-rank", "1", "--config", "r3", "seed=1", "name=x"],
    ):
        options = train.parse(words)
        assert (options.overrides, options.config, options.dry_run) == (["seed=1", "name=x"], "r3", True)


def test_a_missing_package_is_reported_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    assert train(["telemetry.wandb=offline"]) == 1
    assert "pip install 'brasyn_dist[wandb]'" in capsys.readouterr().err
    assert train(["telemetry.tensorboard=true"]) == 1
    assert "pip install 'brasyn_dist[tensorboard]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script",
    ["tools/shard_dataset.py", "tools/inspect_dataset.py", "tools/drop_modality.py", "tools/ablate.py",
     "tools/cross_validate.py", "tools/convert_checkpoint.py", "tools/demo.py", "slurm/submit.py"],
)  # fmt: skip
def test_scripts_of_the_clone_are_the_commands(script: str, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, REPOSITORY / script, "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("Usage: brasyn ")


def test_an_invalid_log_setting_of_pytorch_is_one_line():
    words = [*RUN, "infer", "--weights", "w", "--input", "i", "--output", "o"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TORCH_LOGS": "none"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: TORCH_LOGS='none' is no setting of PyTorch; unset it\n",
    )
