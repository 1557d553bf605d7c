"""Convert published generator weights into this project's format.

    brasyn convert PUBLISHED.safetensors OUT

OUT is then a folder that `brasyn infer --weights OUT` and `Generator.from_pretrained(OUT)` read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument

from brasyn_dist.cli.command import Command, Positive, View


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `brasyn convert`."""

    published: Annotated[Path, Argument(metavar="PUBLISHED")]
    """Published generator weights (.safetensors)."""
    out: Annotated[Path, Argument(metavar="OUT")]
    """Folder for config.json and model.safetensors."""
    heads: Positive = 16
    """Attention heads, which the shapes of weights do not show."""
    statistics: str = "published"
    """statistics.json of the training, or `published`."""
    views: list[View] | None = None
    """Views that the weights were trained on."""


def run(options: ConvertOptions) -> None:
    """Read, convert, check by loading, write; print the network's size."""
    from brasyn_dist.models.hfgan import HFGANGenerator
    from brasyn_dist.models.pretrained import load_tensors
    from brasyn_dist.models.published_weights import convert_generator
    from brasyn_dist.preprocessing.preprocessing import Preprocessing
    from brasyn_dist.preprocessing.statistics import Statistics

    config, state = convert_generator(load_tensors(options.published), options.heads)
    generator = HFGANGenerator(config)
    generator.load_state_dict(state)
    statistics = Statistics.load(options.statistics)
    generator.save_pretrained(options.out, Preprocessing(statistics, tuple(options.views or ())))
    parameters = sum(p.numel() for p in generator.parameters())
    print(f"{options.out}: generator with {parameters:,} parameters, {generator.config}")


main = Command("convert", ConvertOptions, run, lists=("--views",))
