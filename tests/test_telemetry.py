"""Metrics survive kills without gaps or repeats; trackers get every step once."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.config import TelemetryConfig
from brasyn_dist.errors import ConfigError
from brasyn_dist.training.loggers import (
    METRICS,
    JsonLines,
    RunLogger,
    check_trackers,
    read_lines,
    wandb_mode,
)


def test_resume_drops_later_lines_and_a_torn_one(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path)
    for step in range(1, 6):
        lines.write({"step": step, "loss": step / 3})
    lines.close()
    undisturbed = path.read_bytes()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    resumed = JsonLines(path, resumed_step=3)
    for step in range(4, 6):
        resumed.write({"step": step, "loss": step / 3})
    resumed.close()
    assert path.read_bytes() == undisturbed


def test_a_resume_that_drops_nothing_leaves_the_file(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n')
    before = path.stat()
    JsonLines(path, resumed_step=1).close()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_only_the_main_process_writes(tmp_path: Path):
    telemetry = RunLogger(TelemetryConfig(), tmp_path, is_main=False, total_steps=3)
    telemetry.train([{"step": 1, "loss": 1.0}])
    telemetry.progress(1, {})
    telemetry.close("finished")
    assert not list(tmp_path.iterdir())


def test_train_and_validation_of_one_step_both_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seen: list[tuple[int, dict[str, float]]] = []

    class Recorder:
        def scalars(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
            seen.extend((step, dict(values)) for step, values in lines)

        def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None: ...
        def close(self, status: str) -> None: ...

    set_up_logging()
    telemetry = RunLogger(TelemetryConfig(), tmp_path, is_main=True, total_steps=2)
    telemetry._trackers["recorder"] = Recorder()
    telemetry.train([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
    telemetry.validation({"step": 2, "mae": 0.1})
    telemetry.progress(2, {"L1": "0.5"})
    telemetry.close("finished")
    assert seen == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}), (2, {"validation/mae": 0.1})]
    assert [line["kind"] for line in read_lines(tmp_path / METRICS)] == ["train", "train", "validation"]
    assert "step 2/2  L1 0.5" in capsys.readouterr().out


OPTIONAL = "brasyn_dist.common.optional_packages.find_spec"
"""Lookup of optional packages."""


class FailingTracker:
    """Fails at every call, as a tracker without network does."""

    calls = 0

    def scalars(self, lines: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")

    def image(self, step: int, name: str, rgb_HW3: np.ndarray) -> None:
        raise ConnectionError("no route to host")

    def close(self, status: str) -> None:
        raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_switched_off_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    set_up_logging()
    logger, tracker = RunLogger(TelemetryConfig(), tmp_path, is_main=True, total_steps=2), FailingTracker()
    logger._trackers["W&B"] = tracker
    for step in (1, 2):
        logger.train([{"step": step, "loss": 1.0}])
        logger.image(step, "panels/t1c", np.zeros((1, 1, 3), np.uint8))
    logger.close("finished")
    assert tracker.calls == 1
    assert capsys.readouterr().err.count("W&B failed and is switched off") == 1
    assert [line["step"] for line in read_lines(tmp_path / METRICS)] == [1, 2]


def test_a_tracker_that_cannot_start_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object) -> None:
        raise ConnectionError("no route to host")

    set_up_logging()
    monkeypatch.setattr("brasyn_dist.training.loggers.WandbTracker", fail)
    RunLogger(TelemetryConfig(wandb="offline"), tmp_path, True, 2).close("finished")
    assert "W&B failed" in capsys.readouterr().err


def test_missing_requirements_of_trackers_are_named_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online = TelemetryConfig(wandb="online")
    with pytest.raises(ConfigError, match="WANDB_API_KEY.*telemetry.wandb=offline"):
        check_trackers(online)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode(online) == "offline" and wandb_mode(TelemetryConfig()) == "off"
    check_trackers(online)
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret")
    check_trackers(online)
    monkeypatch.setattr(OPTIONAL, lambda name: None)
    with pytest.raises(ConfigError, match=r"telemetry.tensorboard=true needs.*\[tensorboard\]"):
        check_trackers(TelemetryConfig(tensorboard=True))


@pytest.mark.slow
def test_wandb_offline_continues_one_run_without_doubled_steps(tmp_path: Path):
    """Two processes' worth of the same run: read back from W&B's own files what was sent."""
    config = TelemetryConfig(wandb="offline")
    first = RunLogger(config, tmp_path, True, 6, None, {"seed": 1})
    first.train([{"step": s, "loss": 1.0 / s} for s in range(1, 5)])
    first.close("failed")  # killed after step 4; its checkpoint is that of step 2
    second = RunLogger(config, tmp_path, True, 6, 2, {"seed": 1})
    second.train([{"step": s, "loss": 1.0 / s} for s in range(3, 7)])
    second.close("finished")
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    # W&B's service may still be writing what its client has called finished.
    deadline = time.monotonic() + 60
    while len(sent := [s for file in files for s in steps_in(file)]) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sent == [1, 2, 3, 4, 5, 6]
    assert len({file.stem for file in files}) == 1
    assert json.loads((tmp_path / "wandb.json").read_text())["last_step"] == 6


def steps_in(file: Path) -> list[int]:
    """Optimiser steps of the history records in W&B's transaction log."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in records_in(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            if "optimizer_step" in (item.key, *item.nested_key):
                steps.append(int(json.loads(item.value_json)))
    return steps


def records_in(log: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log (32 KiB blocks of crc, length, type, data) after W&B's 7-byte head."""
    position, record = 7, b""
    while position + 7 <= len(log):
        length = int.from_bytes(log[position + 4 : position + 6], "little")
        kind = log[position + 6]  # 1 whole, 2 first, 3 middle, 4 last
        if position + 7 + length > len(log):
            return  # still being written
        record += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
        left = 32768 - position % 32768
        position += left if left < 7 else 0
