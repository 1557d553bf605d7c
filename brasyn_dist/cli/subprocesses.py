"""Commands that run other commands of the project: each is printed before it runs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from brasyn_dist.common.resources import PACKAGE
from brasyn_dist.errors import BrasynError


def brasyn(*arguments: str | Path) -> list[str]:
    """Command line of a subcommand of `brasyn`, run by this Python."""
    return [sys.executable, "-m", "brasyn_dist", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Environment in which the package is found from every folder, also if it is not installed."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]),
    }


def title(text: str) -> None:
    """Print the heading of a stage."""
    print(f"\n=== {text}", flush=True)


def show(command: list[str]) -> None:
    """Print a command line."""
    words = ["brasyn", *command[3:]] if command[:3] == brasyn() else command
    print("$ " + shlex.join(["python" if word == sys.executable else word for word in words]), flush=True)


def call(command: list[str]) -> None:
    """Print and run a command. Raises BrasynError if it fails."""
    show(command)
    check(subprocess.run(command, env=environment()).returncode, command)


def check(status: int, command: list[str]) -> None:
    """Raise BrasynError unless the exit status is 0."""
    if status != 0:
        raise BrasynError(f"{shlex.join(command)}: exit status {status}; its messages are above")
