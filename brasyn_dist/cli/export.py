"""Export a trained network for others: model card, MONAI bundle, torch.export program, upload.

    brasyn export RUN OUT [--format hub | monai-bundle | torch-export] [--push ORG/NAME]

hub: config.json, model.safetensors and a model card; `Generator.from_pretrained` and `brasyn infer --weights`
read it, also by ORG/NAME after an upload. monai-bundle: what `python -m monai.bundle run` executes.
torch-export: model.pt2, a program that runs without this package.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from brasyn_dist.cli.command import Command
from brasyn_dist.errors import ConfigError

Format = Literal["hub", "monai-bundle", "torch-export"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `brasyn export`."""

    run: Annotated[str, Argument(metavar="RUN")]
    """Run or export folder, or ORG/NAME on the hub."""
    out: Annotated[Path, Argument(metavar="OUT")]
    """Folder to write."""
    format: Format = "hub"
    """Kind of export."""
    name: str | None = None
    """Title of the model card.  [default: of OUT]"""
    evaluation: Path | None = None
    """Folder of `brasyn evaluate` for the model card."""
    push: Annotated[str | None, Option(metavar="ORG/NAME")] = None
    """Upload OUT to this model on the hub."""
    public: bool = False
    """A new model on the hub is public."""


def run(options: ExportOptions) -> None:
    """Write the export, and upload it."""
    from brasyn_dist.common.optional_packages import require
    from brasyn_dist.models.export import export_network
    from brasyn_dist.models.hub import upload

    if options.push is not None:
        require("huggingface_hub", "hub", "--push")
    if options.evaluation is not None and not (options.evaluation / "summary.json").is_file():
        raise ConfigError(
            f"--evaluation {options.evaluation}: no summary.json; give a folder of `brasyn evaluate`"
        )
    name = options.name or options.push or options.out.resolve().name
    export_network(options.run, options.out, options.format, name, options.evaluation)
    print(f"{options.out}: {options.format}")
    if options.push is not None:
        print(upload(options.out, options.push, private=not options.public, message=f"brasyn export {name}"))


main = Command("export", ExportOptions, run)
