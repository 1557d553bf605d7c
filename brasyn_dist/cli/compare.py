"""Test whether one run is better than another.

    brasyn compare A/cases.csv B/cases.csv [--out comparison.json]

Compares two evaluations of the same cases, score by score and by the challenge's ranking
(brasyn_dist/evaluation/paired_tests.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command, Positive


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of `brasyn compare`."""

    a: Annotated[Path, Argument(metavar="A")]
    """cases.csv of one evaluation, or its folder."""
    b: Annotated[Path, Argument(metavar="B")]
    """The other evaluation; may be A, to compare two of its methods."""
    method_a: str = "synthetic"
    """Method of A."""
    method_b: str = "synthetic"
    """Method of B, such as 'linear regression'."""
    rank_by: Annotated[list[str] | None, Option(metavar="SCORE...")] = None
    """Scores of the ranking, equally weighted.  [default: the challenge's, as far as known]"""
    common: bool = False
    """Compare the cases that both have; leave out the others."""
    resamples: Positive = 99_999
    """Random permutations; exact where there are fewer."""
    seed: int = 0
    """Seed of the permutations."""
    out: Path | None = None
    """Write the comparison as JSON, too."""


def run(options: CompareOptions) -> None:
    """Print the comparison, and write it if asked to."""
    from brasyn_dist.common.files import write_json
    from brasyn_dist.evaluation import paired_tests as tests

    a = tests.read_scores(options.a, options.method_a)
    b = tests.read_scores(options.b, options.method_b)
    pairs = tests.pair_scores(a, b, options.common)
    rank_by = options.rank_by or tests.CHALLENGE_SCORES
    result = tests.compare_scores(pairs, rank_by, options.resamples, options.seed)
    print(f"A: {options.a} ({options.method_a})\nB: {options.b} ({options.method_b})\n")
    print(tests.comparison_table(result))
    if options.out is not None:
        sides = {"a": str(options.a), "b": str(options.b)}
        methods = {"method_a": options.method_a, "method_b": options.method_b}
        write_json(options.out, {**sides, **methods, **result.to_dict()})


main = Command("compare", CompareOptions, run, lists=("--rank-by",))
