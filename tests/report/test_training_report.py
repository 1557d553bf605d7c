"""The report of a run is written from its folder when it ends; a failure of the report does not fail the run."""

import json
from pathlib import Path

import pytest

from brasyn_dist.cli.report import main as report_main
from brasyn_dist.config import Config, load_config, to_yaml
from brasyn_dist.errors import DataError
from brasyn_dist.report.training_report import option_differences, write_run_report
from tests.distributed.launch import SMALL
from tests.report.checked import checked
from tests.small import small_shard_set


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six updates in this process."""
    from brasyn_dist.cli.train import main

    root = tmp_path_factory.mktemp("run")
    shards = small_shard_set(root / "shards")
    options = [
        *SMALL,
        "telemetry.report=true",
        "training.max_steps=6",
        "validation.every_steps=3",
        "training.global_batch_size=4",
    ]
    assert main([*options, f"data.shards={shards}", f"runs_dir={root / 'runs'}", "name=small"]) == 0
    return root / "runs" / "small"


@pytest.mark.slow
def test_a_finished_run_leaves_its_report(run_dir: Path) -> None:
    page = checked(run_dir / "report.html")
    assert page.titles("h1") == ["Training run small"]
    titles = ["Validation", "Loss terms", "Pictures", "Speed", "Data", "Configuration", "Provenance"]
    assert page.titles() == titles
    text = page.text()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    assert "finished: step 6 of 6" in text
    for name in ("mae", "t1c/psnr", "t2w/ssim_healthy"):
        assert f"{last[name]:.4g}" in text, name
    charts = [s["aria-label"] for s in page.all("svg")]
    terms = [n for n in lines[0] if n not in ("step", "kind", "epoch")]
    assert len(charts) == len(terms) + 4 + 2  # validation's four scores, speed's two numbers
    assert sum("held-out slice at step 6, number 1" in i["alt"] for i in page.all("img")) in (
        4 * 6,
        5 * 6,
    )  # the opening row may be one of them
    data = json.loads((run_dir / "data.json").read_text())
    weights = json.loads((run_dir / "export" / "config.json").read_text())["weights_sha256"]
    for fact in (data["fingerprint"], weights, "training.max_steps", "train_gli", "torch"):
        assert fact in text, fact
    assert f"{data['slices']['training']} for training, {data['slices']['held_out']} held out" in text


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from brasyn_dist.cli.train import main

    def broken(run_dir: Path) -> Path:
        assert json.loads((run_dir / "status.json").read_text())["status"] == "finished"
        raise OSError("no space left on device")

    monkeypatch.setattr("brasyn_dist.report.training_report.write_run_report", broken)
    shards = small_shard_set(tmp_path / "shards")
    options = [
        *SMALL,
        "telemetry.report=true",
        "training.max_steps=1",
        "validation.every_steps=0",
        f"data.shards={shards}",
    ]
    assert main([*options, f"runs_dir={tmp_path / 'runs'}", "name=a"]) == 0
    assert "could not be written (OSError: no space left" in capsys.readouterr().err
    assert main([*options, f"runs_dir={tmp_path / 'runs'}", "name=b", "telemetry.report=false"]) == 0
    assert "could not be written" not in capsys.readouterr().err


def bare_run(folder: Path, status: dict | None = None) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load_config(None, ["name=x", "optimizer.base_rate=0.5"])))
    if status:
        (folder / "status.json").write_text(json.dumps(status))
    return folder


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "x", {"status": "stopped", "step": 3, "total_steps": 9, "reason": "SIGTERM"})
    page = checked(write_run_report(folder))
    text = page.text()
    assert "stopped (SIGTERM): step 3 of 9" in text and "no training step" in text
    assert "This run has no validation" in text and "earlier version" in text
    assert "optimizer.base_rate" in text and "0.0005" in text


def test_a_torn_log_and_a_damaged_file_are_no_obstacle(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "x")
    lines = [json.dumps({"step": s, "kind": "train", "loss": 1.0}) for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "ki')
    (folder / "environment.json").write_text("{")
    assert "loss. By optimiser step: from 1 to 1" in checked(write_run_report(folder)).source


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bare_run(tmp_path / "x")
    assert report_main([str(folder)]) == 0 and (folder / "report.html").exists()
    assert report_main([str(tmp_path), str(folder)]) == 1
    assert "no config.yaml" in capsys.readouterr().err
    with pytest.raises(DataError):
        write_run_report(tmp_path)


def test_differences_from_defaults() -> None:
    values = {"name": "a", "data": {"views": ["axial"], "threads": 3}, "gone": 1}
    defaults = {"name": "run", "data": {"views": ["axial"], "threads": 2}}
    assert option_differences(values, defaults) == [
        ("name", "a", "run"),
        ("data.threads", 3, 2),
        ("gone", 1, None),
    ]
    assert Config().telemetry.report
