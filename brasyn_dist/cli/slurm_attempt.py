"""Record an attempt of a batch job at a run; slurm/train.sbatch calls it.

    brasyn slurm-attempt begin --config C [section.key=value ...]    prints the run folder
    brasyn slurm-attempt end RUN_DIR --exit-status N [--warned]      prints finished, requeue, stop, give-up

Called by batch scripts only.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter

from brasyn_dist.cli.command import Command
from brasyn_dist.common.resources import find_resource


@dataclass(frozen=True, kw_only=True)
class AttemptOptions:
    """Options of `brasyn slurm-attempt`."""

    event: Annotated[Literal["begin", "end"], Argument()]
    """What happened."""
    words: Annotated[list[str] | None, Argument(metavar="WORD")] = None
    """`begin`: section.key=value; `end`: the run folder."""
    config: str | None = None
    """YAML file of the run."""
    exit_status: int | None = None
    """Exit status of the launcher."""
    warned: bool = False
    """The batch script was signalled to end."""

    def __post_init__(self) -> None:
        if self.event == "end" and (self.exit_status is None or len(self.words or ()) != 1):
            raise BadParameter("`end` needs the run folder and --exit-status")


def run(options: AttemptOptions) -> None:
    """Record the event; print the run folder or the verdict."""
    from brasyn_dist.config import RunConfig, load_config
    from brasyn_dist.training import slurm_attempts

    words = options.words or []
    if options.event == "begin":
        path = find_resource("configs", options.config) if options.config else None
        run_dir = load_config(path, words, RunConfig).run_dir.absolute()
        slurm_attempts.begin(run_dir)
        print(run_dir)
        return
    assert options.exit_status is not None
    verdict = slurm_attempts.end(Path(words[0]), options.exit_status, options.warned)
    print(verdict.reason, file=sys.stderr, flush=True)
    print(verdict.action)


main = Command("slurm-attempt", AttemptOptions, run)
