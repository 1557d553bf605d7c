"""Progress: a bar with the time left on a terminal, a few lines elsewhere."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from brasyn_dist.common.progress import Progress
from tests.conftest import REPOSITORY

WORK = """
from brasyn_dist.common.progress import Progress
with Progress("work", 8) as progress:
    for done in range(1, 9):
        progress.say(f"case {done}", print)
        progress.reach(done)
"""


def test_a_few_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]):
    with Progress("work", 100) as progress:
        for done in range(1, 101):
            progress.reach(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"work: {n}/100" for n in (25, 50, 75, 100)]
    assert lines[0].endswith(" left") and "left" not in lines[-1]


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]):
    with Progress("work", 2, hidden=True) as progress:
        progress.reach(1)
        progress.reach(2)
    assert capsys.readouterr().err == ""


def test_a_bar_with_the_time_left_on_a_terminal():
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 80))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", WORK], stderr=other, stdout=subprocess.PIPE, text=True, env=environment
    )
    os.close(other)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert done.stdout.split("\n")[:-1] == [f"case {n}" for n in range(1, 9)]
    assert "8/8" in shown and "<" in shown and "work: 8/8" not in shown
