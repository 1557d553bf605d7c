#!/usr/bin/env python3
"""Turn published generator weights into this project's format.

    python tools/convert_checkpoint.py PUBLISHED.safetensors OUT [--heads 16] [--statistics FILE]

OUT then is a folder that `brasyn_dist.infer --weights OUT` and `Generator.from_pretrained(OUT)` take.
"""

import argparse
import sys
from pathlib import Path

from brasyn_dist.brats import VIEWS
from brasyn_dist.errors import BrasynError
from brasyn_dist.models.generator import Generator
from brasyn_dist.models.pretrained import load_tensors
from brasyn_dist.models.published_weights import convert_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        generator = convert(options.published, options.out, options.heads, options.statistics, options.views)
    except BrasynError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parameters = sum(p.numel() for p in generator.parameters())
    print(f"{options.out}: generator with {parameters:,} parameters, {generator.config}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("published", type=Path, help="published generator weights (.safetensors)")
    parser.add_argument("out", type=Path, help="folder to write config.json and model.safetensors to")
    parser.add_argument(
        "--heads", type=int, default=16, help="attention heads: the one thing that weights do not tell"
    )
    parser.add_argument(
        "--statistics",
        default="published",
        help="statistics.json that the weights were trained with (default: the published statistics)",
    )
    parser.add_argument(
        "--views", nargs="*", choices=VIEWS, default=[], help="views that the weights were trained on"
    )
    return parser


def convert(published: Path, out: Path, heads: int, statistics: str, views: list[str]) -> Generator:
    """Read, convert, check by loading, write. Raises CheckpointError or DataError."""
    config, state = convert_generator(load_tensors(published), heads)
    generator = Generator(config)
    generator.load_state_dict(state)
    chosen = PUBLISHED if statistics == "published" else Statistics.load(statistics)
    generator.save_pretrained(out, Preprocessing(chosen, tuple(views)))
    return generator


if __name__ == "__main__":
    sys.exit(main())
