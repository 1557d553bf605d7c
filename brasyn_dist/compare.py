"""Is one run better than another? `python -m brasyn_dist.compare A/cases.csv B/cases.csv [--out comparison.json]`

Compares two evaluations of the same cases, score by score and as the challenge ranks: see brasyn_dist/evaluation/paired_tests.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from brasyn_dist.common.files import write_json
from brasyn_dist.common.logs import set_up_logging
from brasyn_dist.errors import BrasynError
from brasyn_dist.evaluation.paired_tests import (
    CHALLENGE_SCORES,
    RESAMPLES,
    compare_scores,
    comparison_table,
    pair_scores,
    read_scores,
)
from brasyn_dist.evaluation.scoring import SYNTHETIC


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brasyn_dist.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="cases.csv of one evaluation, or its folder")
    add("b", type=Path, metavar="B", help="the other; may be A itself, to compare two methods of it")
    add("--method-a", default=SYNTHETIC, metavar="NAME", help="method of A (default %(default)s)")
    add("--method-b", default=SYNTHETIC, metavar="NAME", help="of B, such as 'linear regression'")
    add(
        "--rank-by",
        nargs="+",
        metavar="SCORE",
        default=CHALLENGE_SCORES,
        help=f"scores that the ranking counts, all alike (default: those known of {' '.join(CHALLENGE_SCORES)})",
    )
    add("--common", action="store_true", help="compare the cases that both have, and leave out the others")
    add("--resamples", type=int, default=RESAMPLES, help="default %(default)s; exact where there are fewer")
    add("--seed", type=int, default=0, help="of the resamples")
    add("--out", type=Path, metavar="FILE", help="write the comparison as JSON too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    set_up_logging()
    options = parser().parse_args(arguments)
    try:
        a = read_scores(options.a, options.method_a)
        b = read_scores(options.b, options.method_b)
        pairs = pair_scores(a, b, options.common)
        result = compare_scores(pairs, options.rank_by, options.resamples, options.seed)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"A: {options.a} ({options.method_a})\nB: {options.b} ({options.method_b})\n")
    print(comparison_table(result))
    if options.out is not None:
        sides = {"a": str(options.a), "b": str(options.b)}
        methods = {"method_a": options.method_a, "method_b": options.method_b}
        write_json(options.out, {**sides, **methods, **result.to_dict()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
