"""Weights in and out: a folder of two files that is all that synthesis (or segmentation) needs.

    config.json           format, shape of the network, statistics, normalisation and views it was trained with, hash of the weights
    model.safetensors     weights, float32, contiguous

Generators and segmenters are stored alike; `format` tells which of them it is.
The hash ties the two together: a save that was interrupted between them, or a damaged copy, is refused.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brasyn_dist.common.files import atomic_path, sha256_of, write_json
from brasyn_dist.common.typed_yaml import from_dict, to_dict
from brasyn_dist.config import GeneratorConfig, NormalisationMode, SegmenterConfig
from brasyn_dist.errors import BrasynError, CheckpointError
from brasyn_dist.models.generator import EncoderExecution, Generator
from brasyn_dist.models.segmenter import Segmenter
from brasyn_dist.preprocessing.intensity_scale import Scales
from brasyn_dist.preprocessing.statistics import Statistics

Network = TypeVar("Network", Generator, Segmenter)

GENERATOR, SEGMENTER = "generator", "segmenter"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EXPORT_FOLDER = "export"
"""Where a run folder keeps its export."""
AVERAGE = "average.safetensors"
"""A training checkpoint's file with the better weights; the others are in `<kind>.safetensors`."""


def save_pretrained(
    network: Generator | Segmenter,
    folder: Path | str,
    statistics: Statistics | None = None,
    views: Sequence[str] = (),
    step: int | None = None,
    normalisation: NormalisationMode | None = None,
    scales: Scales | None = None,
) -> None:
    """Write the two files into `folder`, each whole or not at all; what is not given defaults to the network's own.

    Raises CheckpointError without statistics: weights are of no use without the normalisation they were trained with.
    """
    kind = GENERATOR if isinstance(network, Generator) else SEGMENTER
    statistics = statistics or network.statistics
    if statistics is None:
        raise CheckpointError(
            f"{folder}: a {kind} is exported with the statistics it was trained with; give them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in network.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as path:
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(
            0o644
        )  # safetensors makes files for their owner alone; others run the container, or share the folder
        digest = sha256_of(path)
    values = {
        "format": format_name(kind),
        "format_version": FORMAT_VERSION,
        kind: to_dict(network.config),
        "statistics": statistics.to_dict(),
        "normalisation": normalisation or network.normalisation,
        "views": list(views or network.views),
        "step": step,
        "weights_sha256": digest,
    }
    if scales := scales or network.scales:
        values["scales"] = scales.to_dict()
    write_json(folder / CONFIG_FILE, values)


def load_pretrained(path: Path | str, encoder_execution: EncoderExecution = "separate") -> Generator:
    """Generator in evaluation mode, on the CPU, from an export folder or the run folder that holds one.

    Raises CheckpointError where files are missing, damaged, of another format or do not belong together.
    """
    return read_export(
        path,
        GENERATOR,
        lambda shape, where: Generator(from_dict(GeneratorConfig, shape, where), encoder_execution),
    )


def load_segmenter(path: Path | str) -> Segmenter:
    """Segmenter in evaluation mode, on the CPU: see `load_pretrained`."""
    return read_export(
        path, SEGMENTER, lambda shape, where: Segmenter(from_dict(SegmenterConfig, shape, where))
    )


def read_export(path: Path | str, kind: str, build: Callable[[dict[str, Any], str], Network]) -> Network:
    """The network that `build` makes of the shape in config.json (and of that file's name), with its weights."""
    folder = export_folder(Path(path), kind)
    values = read_config(folder / CONFIG_FILE, kind)
    tensors = load_tensors(folder / WEIGHTS_FILE)
    if sha256_of(folder / WEIGHTS_FILE) != values["weights_sha256"]:
        raise CheckpointError(
            f"{folder}: {WEIGHTS_FILE} is not the file that {CONFIG_FILE} describes (an interrupted save or copy, or a "
            "changed file); export or copy both again"
        )
    try:
        statistics = Statistics.from_dict(values["statistics"], folder / CONFIG_FILE)
        scales = Scales.from_dict(values["scales"], folder / CONFIG_FILE) if "scales" in values else None
        with torch.device("meta"):
            network = build(values[kind], str(folder / CONFIG_FILE))
    except BrasynError as error:
        raise CheckpointError(str(error)) from None
    load_state(network, tensors, folder / WEIGHTS_FILE)
    network.statistics, network.views = statistics, tuple(values["views"])
    network.normalisation, network.scales = values["normalisation"], scales
    return network.eval()


def load_generator_weights(generator: Generator, path: Path | str) -> None:
    """Weights alone, into `generator`: from an export folder, a run folder, or a checkpoint (its average, if it has one).

    Raises CheckpointError where there are none or they do not fit.
    """
    load_weights_alone(generator, path, GENERATOR)


def load_segmenter_weights(segmenter: Segmenter, path: Path | str) -> None:
    """Weights alone, into `segmenter`: see `load_generator_weights`."""
    load_weights_alone(segmenter, path, SEGMENTER)


def load_weights_alone(network: nn.Module, path: Path | str, kind: str) -> None:
    file = weights_file(Path(path), kind)
    load_state(network, load_tensors(file), file)


def weights_file(path: Path, kind: str = GENERATOR) -> Path:
    """The file with a generator's (or a segmenter's) weights in a checkpoint, export or run folder."""
    for name in (AVERAGE, f"{kind}.safetensors"):
        if (path / name).is_file():
            return path / name
    return export_folder(path, kind) / WEIGHTS_FILE


def format_name(kind: str) -> str:
    return f"brasyn_dist.{kind}"


def export_folder(path: Path, kind: str = GENERATOR) -> Path:
    """`path`, or its `export` folder if that is the one with a config.json."""
    for folder in (path, path / EXPORT_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise CheckpointError(
        f"{path}: no exported {kind} ({CONFIG_FILE} and {WEIGHTS_FILE}) here or in {EXPORT_FOLDER}/; give the folder "
        "of a finished run" + (" or of tools/convert_checkpoint.py" if kind == GENERATOR else "")
    )


def read_config(path: Path, kind: str = GENERATOR) -> dict[str, Any]:
    """The mapping in a config.json of ours, its format checked."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); export again") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION or values.get("format") != format_name(kind):
        raise CheckpointError(
            f"{path}: not a {kind} of {format_name(kind)} version {FORMAT_VERSION}; export again"
        )
    missing = {kind, "statistics", "views", "weights_sha256"} - set(values)
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(sorted(missing))}; export again")
    # Exports made before there was a choice do not tell.
    if values.setdefault("normalisation", "zscore") not in get_args(NormalisationMode):
        raise CheckpointError(f"{path}: unknown normalisation {values['normalisation']!r}; export again")
    return values


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def load_state(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put `tensors` into `network`, keeping its device unless that is `meta`, in which case they become its own."""
    try:
        network.load_state_dict(tensors, assign=next(network.parameters()).is_meta)
    except RuntimeError as error:
        kind = type(network).__name__.lower()
        raise CheckpointError(f"{path} does not fit the configured {kind}: {error}") from None
