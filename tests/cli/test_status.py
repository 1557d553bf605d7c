"""`brasyn status`: one line for each run, from files that may be incomplete."""

import json
import time
from pathlib import Path

import pytest

from brasyn_dist.cli.status import find_runs, main
from brasyn_dist.config import Config, SegmenterRunConfig, to_yaml
from brasyn_dist.training.run_dir import RunLock, noting_failure


def make_run(
    folder: Path, config: object, status: dict[str, object] | None, lines: list[dict[str, object]]
) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    if status is not None:
        (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')


def test_one_line_for_each_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "160")
    train = {"step": 8, "kind": "train", "epoch": 0.1, "rate": 1e-3, "reconstruction": 2.0, "ssim": 0.5}
    running = {"status": "running", "step": 4, "total_steps": 20, "job": "7.0", "reason": ""}
    make_run(tmp_path / "a", Config(), running, [train | {"generator_norm": 3.0, "discriminator": 9.0}])
    (tmp_path / "a/performance.jsonl").write_text(
        '{"step": 8, "seconds_per_step": 2.5, "slices_per_second": 12.0}\n'
    )
    make_run(tmp_path / "b", SegmenterRunConfig(), None, [])
    (tmp_path / "no run").mkdir()
    a, b = find_runs(tmp_path)
    assert (a.name, a.task, a.status, a.step, a.total_steps, a.loss) == (
        "a",
        "generator",
        "running",
        8,
        20,
        2.5,
    )
    assert (a.slices_per_second, a.seconds_left, a.job) == (12.0, 30.0, "7.0")
    assert (b.task, b.status, b.loss) == ("segmenter", "unknown", None)
    assert find_runs(tmp_path / "a") == [a]
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "8/20" in text and "0:00:30" in text and "segmenter" in text
    assert main([str(tmp_path / "none")]) == 1


def test_the_age_of_the_last_update_shows_a_run_that_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    status = {
        "status": "running",
        "step": 4,
        "total_steps": 20,
        "time": time.time() - 7200,
        "reason": f"{'x' * 90}\n[/src/pair.cc:545] reset",
    }
    make_run(tmp_path / "a", Config(), status, [])
    (run,) = find_runs(tmp_path)
    assert run.updated == status["time"]
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2
        and "2:00:0" in lines[1]
        and " ago" in lines[1]
        and f"{'x' * 90} [/src/pair.cc:545] reset" in lines[1]
    )


def test_a_run_whose_process_is_gone_is_not_running(tmp_path: Path):
    make_run(tmp_path / "a", Config(), {"status": "running", "step": 4, "total_steps": 20}, [])
    lock = RunLock(tmp_path / "a")
    assert find_runs(tmp_path)[0].status == "running"
    lock.release()
    assert find_runs(tmp_path)[0].status == "killed"


def test_an_interrupted_run_is_stopped(tmp_path: Path):
    make_run(tmp_path / "a", Config(), {"status": "running", "step": 4, "total_steps": 20}, [])
    with pytest.raises(KeyboardInterrupt), noting_failure(tmp_path / "a", is_main=True):
        raise KeyboardInterrupt
    (run,) = find_runs(tmp_path)
    assert (run.status, run.step, run.reason) == ("stopped", 4, "KeyboardInterrupt")
