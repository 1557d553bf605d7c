"""Write synthetic cohorts in BraTS' layout.

    brasyn phantom OUT --gli 6 --met 2

Makes OUT/train_gli and OUT/train_met with case folders of NIfTI volumes, for demonstrations and tests without
patient data. See brasyn_dist/phantom/__init__.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command, Index
from brasyn_dist.errors import BrasynError


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Options of `brasyn phantom`."""

    out: Annotated[Path, Argument(metavar="OUT")]
    """Folder for the cohort folders train_gli and train_met."""
    gli: Index = 6
    """Glioma cases."""
    met: Index = 2
    """Metastasis cases."""
    shape: Annotated[tuple[int, int, int], Option(metavar="X Y Z")] = (240, 240, 155)
    """Voxels of a volume."""
    seed: Index = 0
    """Seed of the cases."""
    workers: Annotated[int | None, Option(min=1)] = None
    """Processes.  [default: the processors, at most 8]"""


def run(options: PhantomOptions) -> None:
    """Write the cohorts."""
    from brasyn_dist.common.processes import available_processors
    from brasyn_dist.phantom.cases import plan_cohorts, write_cohorts

    cases = plan_cohorts(options.out, options.gli, options.met, options.seed)
    try:
        write_cohorts(cases, options.shape, options.workers or available_processors(8))
    except OSError as error:
        raise BrasynError(str(error)) from error
    print(f"{len(cases)} cases in {options.out}")


main = Command("phantom", PhantomOptions, run)
