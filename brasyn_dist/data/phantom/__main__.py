"""python -m brasyn_dist.data.phantom OUT --gli 6 --met 2: cohort folders OUT/train_gli and OUT/train_met."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.brats import VOLUME_SHAPE
from brasyn_dist.data import phantom


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=phantom.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="gets the cohort folders train_gli and train_met")
    parser.add_argument("--gli", type=int, default=6, help="glioma cases")
    parser.add_argument("--met", type=int, default=2, help="metastasis cases")
    parser.add_argument("--shape", type=int, nargs=3, default=VOLUME_SHAPE, metavar=("X", "Y", "Z"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    from tqdm import tqdm

    plan: list[tuple[phantom.Kind, int]] = [("GLI", n) for n in range(options.gli)]
    plan += [("MET", n) for n in range(options.met)]
    for number, (kind, n) in enumerate(tqdm(plan, desc="phantom cases", disable=None)):
        cohort, name = options.out / f"train_{kind.lower()}", f"BraTS-{kind}-{n:05d}-000"
        # The segmentation is written last: a case that has it is whole.
        if not (cohort / name / f"{name}-seg.nii.gz").exists():
            phantom.write_case(cohort, name, options.seed * 100_003 + number, kind, options.shape)
    print(f"{len(plan)} cases in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
