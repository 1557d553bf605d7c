"""Test whether one run is better than another.

    brasyn compare A/cases.csv B/cases.csv [--out comparison.json]

Compares two evaluations of the same cases, score by score and by the challenge's ranking
(brasyn_dist/evaluation/paired_tests.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `brasyn compare`."""

    a: Annotated[Path, Argument(metavar="A", help="cases.csv of one evaluation, or its folder.")]
    b: Annotated[
        Path,
        Argument(metavar="B", help="The other evaluation; may be A, to compare two of its methods."),
    ]
    method_a: Annotated[str, Option("--method-a", metavar="NAME", help="Method of A.")] = "synthetic"
    method_b: Annotated[
        str, Option("--method-b", metavar="NAME", help="Method of B, such as 'linear regression'.")
    ] = "synthetic"
    rank_by: Annotated[
        list[str] | None,
        Option(
            "--rank-by",
            metavar="SCORE...",
            help="Scores of the ranking, equally weighted.  [default: the challenge's, as far as known]",
        ),
    ] = None
    common: Annotated[
        bool, Option("--common", help="Compare the cases that both have; leave out the others.")
    ] = False
    resamples: Annotated[
        int | None,
        Option(
            "--resamples",
            min=1,
            help="Random permutations; exact where there are fewer.  [default: see paired_tests.RESAMPLES]",
        ),
    ] = None
    seed: Annotated[int, Option("--seed", help="Seed of the permutations.")] = 0
    out: Annotated[
        Path | None, Option("--out", metavar="FILE", help="Write the comparison as JSON, too.")
    ] = None


def run(options: CompareOptions) -> None:
    """Print the comparison, and write it if asked to."""
    from brasyn_dist.common.files import write_json
    from brasyn_dist.evaluation.paired_tests import (
        CHALLENGE_SCORES,
        RESAMPLES,
        compare_scores,
        comparison_table,
        pair_scores,
        read_scores,
    )

    a = read_scores(options.a, options.method_a)
    b = read_scores(options.b, options.method_b)
    pairs = pair_scores(a, b, options.common)
    result = compare_scores(
        pairs, options.rank_by or CHALLENGE_SCORES, options.resamples or RESAMPLES, options.seed
    )
    print(f"A: {options.a} ({options.method_a})\nB: {options.b} ({options.method_b})\n")
    print(comparison_table(result))
    if options.out is not None:
        sides = {"a": str(options.a), "b": str(options.b)}
        methods = {"method_a": options.method_a, "method_b": options.method_b}
        write_json(options.out, {**sides, **methods, **result.to_dict()})


main = Command("compare", CompareOptions, run, lists=("--rank-by",))
