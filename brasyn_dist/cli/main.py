"""The command `brasyn`.

brasyn SUBCOMMAND ...
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import brasyn_dist

COMMANDS = (
    "phantom", "shard", "inspect", "train", "infer", "evaluate", "view", "compare", "table", "fit-fusion",
    "report", "convert", "export", "drop-modality", "cross-validate", "cross-fit", "ablate", "study", "demo",
    "submit", "status", "configs",
)  # fmt: skip
"""Subcommands; `fit-fusion` is `main` of cli/fit_fusion.py, described by its docstring's first line."""
INTERNAL = ("slurm-attempt",)
"""Subcommands that job scripts call; `--help` does not list them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status. Modules of other subcommands are not imported."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in (*COMMANDS, *INTERNAL):
        return importlib.import_module(module_name(words[0])).main(words[1:])
    if words == ["--version"]:
        print(f"brasyn_dist {brasyn_dist.__version__}")
        return 0
    if not words or words[0] in ("--help", "-h"):
        with contextlib.suppress(BrokenPipeError):  # brasyn --help | head
            print(overview())
        return 0 if words else 2
    print(f"error: no such subcommand: {words[0]}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def module_name(command: str) -> str:
    """Module of a subcommand."""
    return f"brasyn_dist.cli.{command.replace('-', '_')}"


def overview() -> str:
    """Text of `brasyn --help`."""
    lines = [f"  {name:<16}{description(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "Usage: brasyn SUBCOMMAND [OPTIONS]...",
            "",
            "Synthesis of missing MRI sequences: data, training, inference, evaluation.",
            "",
            "Subcommands (`brasyn SUBCOMMAND --help` lists the options):",
            *lines,
            "",
            "Environment: BRASYN_LOG=debug|info|warning|error sets the level of messages.",
        ]
    )


def description(command: str) -> str:
    """First line of the module's docstring, read without importing the module."""
    path = Path(__file__).with_name(f"{command.replace('-', '_')}.py")
    with path.open() as file:
        return file.readline().strip().removeprefix("r").strip('"').rstrip(".")


def console() -> None:
    """Entry point of the console script."""
    from brasyn_dist.common.processes import run_and_leave

    run_and_leave(main)


if __name__ == "__main__":
    console()
