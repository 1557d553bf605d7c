"""Weights in and out: a folder of two files that is all that synthesis needs.

    config.json           format, shape of the generator, statistics and views it was trained with, hash of the weights
    model.safetensors     weights, float32, contiguous

The hash ties the two together: a save that was interrupted between them, or a damaged copy, is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from brasyn_dist.config import GeneratorConfig, from_dict, to_dict
from brasyn_dist.data.statistics import Statistics
from brasyn_dist.errors import BrasynError, CheckpointError
from brasyn_dist.files import atomic_path, sha256_of, write_json
from brasyn_dist.models.generator import EncoderExecution, Generator

FORMAT = "brasyn_dist.generator"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EXPORT_FOLDER = "export"
"""Where a run folder keeps its export."""
CHECKPOINT_WEIGHTS = ("average.safetensors", "generator.safetensors")
"""A training checkpoint's files with generator weights, the better one first."""


def save_pretrained(
    generator: Generator,
    folder: Path | str,
    statistics: Statistics | None = None,
    views: Sequence[str] = (),
    step: int | None = None,
) -> None:
    """Write the two files into `folder`, each whole or not at all; statistics and views default to the generator's own.

    Raises CheckpointError without statistics: weights are of no use without the normalisation they were trained with.
    """
    statistics = statistics or generator.statistics
    if statistics is None:
        raise CheckpointError(
            f"{folder}: a generator is exported with the statistics it was trained with; give them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in generator.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as path:
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(
            0o644
        )  # safetensors makes files for their owner alone; others run the container, or share the folder
        digest = sha256_of(path)
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "generator": to_dict(generator.config),
        "statistics": statistics.to_dict(),
        "views": list(views or generator.views),
        "step": step,
        "weights_sha256": digest,
    }
    write_json(folder / CONFIG_FILE, values)


def load_pretrained(path: Path | str, encoder_execution: EncoderExecution = "separate") -> Generator:
    """Generator in evaluation mode, on the CPU, from an export folder or the run folder that holds one.

    Raises CheckpointError where files are missing, damaged, of another format or do not belong together.
    """
    folder = export_folder(Path(path))
    values = read_config(folder / CONFIG_FILE)
    tensors = load_tensors(folder / WEIGHTS_FILE)
    if sha256_of(folder / WEIGHTS_FILE) != values["weights_sha256"]:
        raise CheckpointError(
            f"{folder}: {WEIGHTS_FILE} is not the file that {CONFIG_FILE} describes (an interrupted save or copy, or a "
            "changed file); export or copy both again"
        )
    try:
        config = from_dict(GeneratorConfig, values["generator"], where=str(folder / CONFIG_FILE))
        statistics = Statistics.from_dict(values["statistics"], folder / CONFIG_FILE)
    except BrasynError as error:
        raise CheckpointError(str(error)) from None
    with torch.device("meta"):
        generator = Generator(config, encoder_execution)
    load_state(generator, tensors, folder / WEIGHTS_FILE)
    generator.statistics, generator.views = statistics, tuple(values["views"])
    return generator.eval()


def load_generator_weights(generator: Generator, path: Path | str) -> None:
    """Weights alone, into `generator`: from an export folder, a run folder, or a checkpoint (its average, if it has one).

    Raises CheckpointError where there are none or they do not fit.
    """
    file = weights_file(Path(path))
    load_state(generator, load_tensors(file), file)


def weights_file(path: Path) -> Path:
    """The file with generator weights in a checkpoint, export or run folder."""
    for name in CHECKPOINT_WEIGHTS:
        if (path / name).is_file():
            return path / name
    return export_folder(path) / WEIGHTS_FILE


def export_folder(path: Path) -> Path:
    """`path`, or its `export` folder if that is the one with a config.json."""
    for folder in (path, path / EXPORT_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise CheckpointError(
        f"{path}: no exported generator ({CONFIG_FILE} and {WEIGHTS_FILE}) here or in {EXPORT_FOLDER}/; give the folder "
        "of a finished run or of tools/convert_checkpoint.py"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a config.json of ours, its format checked."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); export again") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION or values.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a generator of {FORMAT} version {FORMAT_VERSION}; export again")
    missing = {"generator", "statistics", "views", "weights_sha256"} - set(values)
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(sorted(missing))}; export again")
    return values


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def load_state(generator: Generator, tensors: dict[str, Tensor], path: Path) -> None:
    """Put `tensors` into `generator`, keeping its device unless that is `meta`, in which case they become its own."""
    try:
        generator.load_state_dict(tensors, assign=next(generator.parameters()).is_meta)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the configured generator: {error}") from None
