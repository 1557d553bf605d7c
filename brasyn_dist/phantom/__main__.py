"""python -m brasyn_dist.phantom OUT --gli 6 --met 2: cohort folders OUT/train_gli and OUT/train_met."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist import phantom
from brasyn_dist.brats import VOLUME_SHAPE
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.common.process_pool import available_processors
from brasyn_dist.errors import BrasynError
from brasyn_dist.phantom.cases import plan_cohorts, write_cohorts


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()
    parser = argparse.ArgumentParser(
        description=phantom.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="gets the cohort folders train_gli and train_met")
    parser.add_argument("--gli", type=int, default=6, help="glioma cases")
    parser.add_argument("--met", type=int, default=2, help="metastasis cases")
    parser.add_argument("--shape", type=int, nargs=3, default=VOLUME_SHAPE, metavar=("X", "Y", "Z"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=available_processors(8), help="default %(default)s")
    options = parser.parse_args(arguments)
    cases = plan_cohorts(options.out, options.gli, options.met, options.seed)
    try:
        write_cohorts(cases, options.shape, options.workers)
    except (BrasynError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(cases)} cases in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
