"""A checkpoint is complete or absent: every damage is detected, and kills during a save leave the previous one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from brasyn_dist.errors import CheckpointError
from brasyn_dist.training.checkpoint import (
    MANIFEST,
    newest_intact,
    open_checkpoint,
    remove_old,
    save_checkpoint,
    step_folders,
)


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"generator": {"w": torch.full((1000,), value)}, "average": {"w": torch.full((1000,), -value)}}


def test_round_trip_is_bit_identical(tmp_path: Path):
    wanted = {"a": {"x": torch.randn(5, 7).to(memory_format=torch.contiguous_format), "n": torch.tensor(3)}}
    folder = save_checkpoint(tmp_path, 7, wanted, {"note": "hello"})
    opened = open_checkpoint(folder)
    assert opened.step == 7 and opened.state == {"note": "hello"}
    assert all(torch.equal(opened.tensors("a")[k], v) for k, v in wanted["a"].items())


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "unmark", "garbage mark"])
def test_damaged_checkpoint_is_passed_over_with_its_reason(tmp_path: Path, damage: str):
    save_checkpoint(tmp_path, 1, tensors(1.0), {})
    folder = save_checkpoint(tmp_path, 2, tensors(2.0), {})
    victim = folder / "average.safetensors"
    data = bytearray(victim.read_bytes())
    if damage == "truncate":
        victim.write_bytes(data[:-1])
    elif damage == "flip":
        data[-10] ^= 1
        victim.write_bytes(data)
    elif damage == "delete":
        victim.unlink()
    elif damage == "unmark":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="step-00000002"):
        open_checkpoint(folder)
    found, passed_over = newest_intact(tmp_path)
    assert found is not None and found.step == 1
    assert len(passed_over) == 1 and "step-00000002" in passed_over[0]
    # The run goes on from step 1 and saves step 2 again, over the damaged one.
    save_checkpoint(tmp_path, 2, tensors(2.0), {})
    found, passed_over = newest_intact(tmp_path)
    assert found is not None and found.step == 2 and not passed_over


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, tensors(step), {})
    remove_old(tmp_path, keep=2, best_step=3)
    assert [s for s, _ in step_folders(tmp_path)] == [6, 5, 3]


def test_failed_save_names_the_folder_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, 1, tensors(1.0), {})

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("brasyn_dist.models.pretrained.save_file", full)
    with pytest.raises(CheckpointError, match=r"step-00000002.*No space left"):
        save_checkpoint(tmp_path, 2, tensors(2.0), {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


SAVER = """
import sys, torch
from pathlib import Path
from brasyn_dist.training.checkpoint import newest_intact, save_checkpoint
root = Path(sys.argv[1])
found, _ = newest_intact(root)
step = found.step if found else 0
print("ready", flush=True)
while True:
    step += 1
    save_checkpoint(root, step, {"w": {"x": torch.full((400_000,), float(step))}}, {"step": step})
"""


@pytest.mark.slow
def test_killed_at_random_moments_while_saving(tmp_path: Path):
    """Repeated SIGKILL during saves: the newest intact checkpoint always has the content of its step."""
    reached = 0
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ}
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        while not any(tmp_path.glob("step-*/manifest.json")):
            assert process.poll() is None
            time.sleep(0.01)  # a slow machine needs longer for the first one
        time.sleep(0.05 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found, _ = newest_intact(tmp_path)
        assert found is not None and found.step >= reached
        assert json.loads((found.folder / "state.json").read_text())["step"] == found.step
        assert torch.equal(found.tensors("w")["x"], torch.full((400_000,), float(found.step)))
        reached = found.step
