"""Cut BraTS cases into shards of slices: see brasyn_dist/data/make_shards.py for what happens.

    python tools/shard_dataset.py data/train_gli data/train_met --out shards --workers 8

Each COHORT_DIR holds case folders (CASE/CASE-t1c.nii.gz, or the names of older editions). Interrupted: run it again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.brats import VIEWS
from brasyn_dist.data.codec import CODECS, DEFAULT_CODEC
from brasyn_dist.data.cohorts import read_split_list
from brasyn_dist.data.index import rebuild_index
from brasyn_dist.data.make_shards import ShardOptions, make_shards, summary
from brasyn_dist.data.slicing import MINIMUM_FOREGROUND
from brasyn_dist.data.statistics import PUBLISHED, Statistics
from brasyn_dist.errors import BrasynError


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cohorts", nargs="*", type=Path, metavar="COHORT_DIR")
    parser.add_argument("--out", type=Path, help="folder of the shard set")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--statistics", help="a statistics.json, or `published`; default: computed from the training cases"
    )
    parser.add_argument(
        "--split", type=Path, help="file with the names of the cases to hold out (JSON list or one a line)"
    )
    parser.add_argument(
        "--validation-fraction", type=float, default=0.1, help="of each cohort's patients, if no --split"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the order of slices")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad cases out instead of stopping")
    parser.add_argument("--round", action="store_true", help="round intensities that are not whole numbers")
    parser.add_argument("--codec", choices=CODECS, default=DEFAULT_CODEC)
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument(
        "--minimum-foreground", type=int, default=MINIMUM_FOREGROUND, help="pixels, in every modality"
    )
    parser.add_argument(
        "--rebuild-index",
        type=Path,
        metavar="DIR",
        help="write index.json anew from the tars in DIR, and end",
    )
    options = parser.parse_args(arguments)
    if options.rebuild_index is None and not (options.cohorts and options.out):
        parser.error("give at least one COHORT_DIR, and --out")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.rebuild_index is not None:
            index = rebuild_index(options.rebuild_index)
            index.save(options.rebuild_index)
            print(summary(index))
            return 0
        make_shards(
            options.cohorts,
            options.out,
            ShardOptions(
                views=tuple(options.views),
                seed=options.seed,
                validation_fraction=options.validation_fraction,
                validation_cases=tuple(read_split_list(options.split)) if options.split else None,
                minimum_foreground=options.minimum_foreground,
                samples_per_shard=options.samples_per_shard,
                codec=options.codec,
                round_values=options.round,
            ),
            statistics=given_statistics(options.statistics),
            workers=options.workers,
            skip_bad=options.skip_bad,
        )
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def given_statistics(option: str | None) -> Statistics | None:
    if option is None:
        return None
    return PUBLISHED if option == "published" else Statistics.load(option)


if __name__ == "__main__":
    sys.exit(main())
