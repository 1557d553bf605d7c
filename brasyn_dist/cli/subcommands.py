"""Commands that run other commands of the project: each is printed before it runs."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from brasyn_dist.errors import BrasynError

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable,)


def environment() -> dict[str, str]:
    """So that the project is found from wherever it is called."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def show(command: list[str]) -> None:
    print("$ " + shlex.join(["python" if a == sys.executable else a for a in command]), flush=True)


def call(*command: str) -> None:
    """Raises subprocess.CalledProcessError if it fails."""
    show(list(command))
    subprocess.run(command, check=True, env=environment())


def exit_status(run: Callable[[], None]) -> int:
    """0, or 1 with the message on stderr if a command failed or something is wrong with what was given."""
    try:
        run()
    except (BrasynError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
