"""Write synthetic cohorts in BraTS' layout.

    brasyn phantom OUT --gli 6 --met 2

Makes OUT/train_gli and OUT/train_met with case folders of NIfTI volumes, for demonstrations and tests without
patient data. See brasyn_dist/phantom/__init__.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from brasyn_dist.cli.command import CaseNumber, Command, Index


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Options of `brasyn phantom`."""

    out: Annotated[Path, Argument(metavar="OUT")]
    """Folder for the cohort folders train_gli and train_met."""
    gli: CaseNumber = 6
    """Glioma cases."""
    met: CaseNumber = 2
    """Metastasis cases."""
    shape: Annotated[tuple[int, int, int], Option(metavar="X Y Z")] = (240, 240, 155)
    """Voxels of a volume."""
    seed: Index = 0
    """Seed of the cases."""
    workers: Annotated[int | None, Option(min=1)] = None
    """Processes.  [default: the processors, at most 8]"""

    def __post_init__(self) -> None:
        if not all(8 <= side <= 1024 for side in self.shape):
            raise BadParameter(f"--shape {' '.join(map(str, self.shape))}: from 8 to 1024 voxels each")


def run(options: PhantomOptions) -> None:
    """Write the cohorts."""
    from brasyn_dist.common.processes import available_processors
    from brasyn_dist.phantom.cases import plan_cohorts, write_cohorts

    cases = plan_cohorts(options.out, options.gli, options.met, options.seed)
    write_cohorts(cases, options.shape, options.workers or available_processors(8))
    print(f"{len(cases)} cases in {options.out}")


main = Command("phantom", PhantomOptions, run)
