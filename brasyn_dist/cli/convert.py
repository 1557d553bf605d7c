"""Convert published generator weights into this project's format.

    brasyn convert PUBLISHED.safetensors OUT

OUT is then a folder that `brasyn infer --weights OUT` and `Generator.from_pretrained(OUT)` read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from brasyn_dist.cli.command import Command, View

if TYPE_CHECKING:
    from brasyn_dist.models.hfgan import HFGANGenerator


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `brasyn convert`."""

    published: Annotated[
        Path, Argument(metavar="PUBLISHED", help="Published generator weights (.safetensors).")
    ]
    out: Annotated[Path, Argument(metavar="OUT", help="Folder for config.json and model.safetensors.")]
    heads: Annotated[
        int, Option("--heads", min=1, help="Attention heads, which the shapes of weights do not show.")
    ] = 16
    statistics: Annotated[
        str,
        Option("--statistics", metavar="FILE", help="statistics.json of the training, or `published`."),
    ] = "published"
    views: Annotated[list[View] | None, Option("--views", help="Views that the weights were trained on.")] = (
        None
    )


def run(options: ConvertOptions) -> None:
    """Convert, and print the network's size."""
    generator = convert(
        options.published,
        options.out,
        options.heads,
        options.statistics,
        [str(view) for view in options.views or ()],
    )
    parameters = sum(p.numel() for p in generator.parameters())
    print(f"{options.out}: generator with {parameters:,} parameters, {generator.config}")


def convert(published: Path, out: Path, heads: int, statistics: str, views: list[str]) -> "HFGANGenerator":
    """Read, convert, check by loading, write. Raises CheckpointError or DataError."""
    from brasyn_dist.models.hfgan import HFGANGenerator
    from brasyn_dist.models.pretrained import load_tensors
    from brasyn_dist.models.published_weights import convert_generator
    from brasyn_dist.preprocessing.preprocessing import Preprocessing
    from brasyn_dist.preprocessing.statistics import PUBLISHED, Statistics

    config, state = convert_generator(load_tensors(published), heads)
    generator = HFGANGenerator(config)
    generator.load_state_dict(state)
    chosen = PUBLISHED if statistics == "published" else Statistics.load(statistics)
    generator.save_pretrained(out, Preprocessing(chosen, tuple(views)))
    return generator


main = Command("convert", ConvertOptions, run, lists=("--views",))
