"""Exports of a trained network in the formats in which people share it."""

from pathlib import Path
from typing import Literal

from brasyn_dist.errors import ConfigError
from brasyn_dist.models.monai_bundle import write_bundle
from brasyn_dist.models.pretrained import CONFIG_FILE, GENERATOR, PretrainedNetwork, export_folder, kind_of
from brasyn_dist.models.registry import Generator
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.models.torch_export import write_program
from brasyn_dist.models.volume_network import CLASSES, volume_network_class

ExportFormat = Literal["hub", "monai-bundle", "torch-export"]


def load_network(path: Path | str) -> PretrainedNetwork:
    """The network in a run or export folder or on the hub, in evaluation mode.

    Raises:
        CheckpointError: As `from_pretrained`.
    """
    kind = kind_of(export_folder(path) / CONFIG_FILE)
    if kind in CLASSES:
        return volume_network_class(kind).from_pretrained(path)
    return (Generator if kind == GENERATOR else Segmenter).from_pretrained(path)


def export_network(
    path: Path | str, out: Path, kind: ExportFormat, name: str, evaluation: Path | None = None
) -> None:
    """Write an export with its model card.

    Args:
        path: Run or export folder, or name on the hub.
        out: Folder to write; created if it does not exist.
        kind: Format.
        name: Name of the model, as ORG/NAME if it is uploaded.
        evaluation: Folder of `brasyn evaluate`, whose scores the model card quotes.

    Raises:
        CheckpointError: The network cannot be read.
        ConfigError: The network cannot be exported in this format.
    """
    network = load_network(path)
    if network.kind in CLASSES and kind != "hub":
        raise ConfigError(
            f"{path}: a network of task {network.kind} has no export as {kind}; leave --format out"
        )
    out.mkdir(parents=True, exist_ok=True)
    if kind == "hub":
        network.save_for_hub(out, name, evaluation)
    elif kind == "torch-export":
        write_program(network, out, name, evaluation)
    elif network.kind == GENERATOR:
        write_bundle(network, out, name, evaluation)
    else:
        raise ConfigError(f"{path}: a MONAI bundle is made of a generator, this is a {network.kind}")
