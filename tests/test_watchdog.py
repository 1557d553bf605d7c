"""A hang is reported with stacks and a verdict; progress is not."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from brasyn_dist.training.watchdog import Peer, Watchdog, hang_verdict
from tests.conftest import REPOSITORY


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_silent_rank_is_reported_once_with_stacks_and_again_only_after_progress(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    log = tmp_path / "rank-0.log"
    me = Peer.here(0)
    with log.open("a", buffering=1) as file, Watchdog(file, tmp_path, me, [me], 0.4) as watchdog:
        watchdog.beat("step 7")
        wait_for(lambda: "all ranks answer" in log.read_text())
        assert (tmp_path / "hang-rank-0.json").exists()
        time.sleep(0.8)
        assert log.read_text().count("made no progress") == 1
        watchdog.beat("step 8")
        wait_for(lambda: not (tmp_path / "hang-rank-0.json").exists())
        wait_for(lambda: log.read_text().count("made no progress") == 2)
    text = log.read_text()
    assert "last: step 7. Stacks follow." in text and "last: step 8. Stacks follow." in text
    assert "test_watchdog.py" in text and "the run hangs: rank 0 since step 7" in capfd.readouterr().err
    assert not list(tmp_path.glob("hang-*"))


def test_progress_is_not_reported(tmp_path: Path):
    log, me = tmp_path / "log", Peer.here(0)
    with log.open("a", buffering=1) as file, Watchdog(file, tmp_path, me, [me], 5) as watchdog:
        for step in range(20):
            watchdog.beat(f"step {step}")
            time.sleep(0.05)
    assert log.read_text() == ""


HELD = """
import ctypes, sys
from pathlib import Path
from brasyn_dist.training.watchdog import Peer, Watchdog
folder, me = Path(sys.argv[1]), Peer.here(0)
with (folder / "log").open("a", buffering=1) as file, Watchdog(file, folder, me, [me], 0.4):
    ctypes.PyDLL(None).sleep(3)  # PyDLL keeps the interpreter's lock
"""


def test_stacks_are_written_even_if_the_interpreter_lock_is_held(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)], env=environment)
    try:
        wait_for(lambda: (tmp_path / "log").exists() and "Timeout (" in (tmp_path / "log").read_text())
        assert process.poll() is None  # written during the sleep
    finally:
        process.kill()
        process.wait()
    assert "most recent call first" in (tmp_path / "log").read_text()


def test_verdict_names_those_who_do_not_answer_and_their_state():
    stopped = subprocess.Popen(["sleep", "100"])
    try:
        stopped.send_signal(signal.SIGSTOP)
        peers = [
            Peer.here(0),
            Peer(1, stopped.pid, socket.gethostname()),
            Peer(2, 2**22 + 1, socket.gethostname()),
            Peer(3, 1, "elsewhere"),
        ]
        wait_for(lambda: "stopped" in peers[1].state())
        verdict = hang_verdict(peers, {0: "update to step 5"})
    finally:
        stopped.kill()
        stopped.wait()
    assert "rank 0 since update to step 5" in verdict
    assert (
        f"rank 1 (process {stopped.pid} on {socket.gethostname()}) does not answer: stopped by a signal"
        in verdict
    )
    assert "rank 2" in verdict and "gone" in verdict
    assert "rank 3 (process 1 on elsewhere) does not answer: on another node" in verdict
