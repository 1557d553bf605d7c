"""Exported weights: a folder of two files that is all that synthesis (or segmentation) needs.

    config.json           format, configuration of the network, preprocessing, SHA-256 of the weights
    model.safetensors     weights, float32, contiguous

Generators and segmenters are stored alike; `format` contains which of them it is. The SHA-256 connects the
two files: after an interrupted save or a damaged copy, loading fails with an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.common.files import atomic_path, sha256_of, write_json
from brasyn_dist.config import from_dict, to_dict
from brasyn_dist.errors import BrasynError, CheckpointError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.preprocessing.preprocessing import Preprocessing

GENERATOR, SEGMENTER = "generator", "segmenter"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EXPORT_FOLDER = "export"
"""Folder of the export in a run folder."""
AVERAGE = "average.safetensors"
"""Averaged weights in a training checkpoint. The current weights are in `<kind>.safetensors`."""


class PretrainedNetwork(nn.Module):
    """Base class of the networks that are exported."""

    kind: ClassVar[str]
    """Name of the network in file names and in config.json."""
    config_class: ClassVar[type]
    before_options: ClassVar[dict[str, Any]] = {}
    """Options of exports that are older than the option, where the default is another value."""

    def __init__(self, config: Any, modality_set: ModalitySet = BRATS) -> None:
        super().__init__()
        self.config = config
        self.modality_set = modality_set
        self.preprocessing: Preprocessing | None = None
        """Preprocessing of the training slices; set by `from_pretrained`."""

    @classmethod
    def class_of(cls, config: Mapping[str, Any]) -> type[Self]:
        """The class of the network with this exported configuration."""
        return cls

    def save_pretrained(
        self, folder: Path | str, preprocessing: Preprocessing | None = None, step: int | None = None
    ) -> None:
        """Write the two files into `folder`, each one completely or not at all.

        Args:
            folder: Created if it does not exist.
            preprocessing: Defaults to the network's own.
            step: Optimiser step of the weights, for documentation only.

        Raises:
            CheckpointError: The preprocessing is unknown. Weights cannot be used without it.
        """
        preprocessing = preprocessing or self.preprocessing
        if preprocessing is None:
            raise CheckpointError(
                f"{folder}: a {self.kind} is exported with the statistics it was trained with; give them"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().float().cpu().contiguous() for k, v in self.state_dict().items()}
        with atomic_path(folder / WEIGHTS_FILE) as path:
            save_file(tensors, path, metadata={"format": "pt"})
            # safetensors creates files that only their owner can read. Other users run the container or
            # share the folder.
            path.chmod(0o644)
            digest = sha256_of(path)
        values = {
            "format": format_name(self.kind),
            "format_version": FORMAT_VERSION,
            self.kind: to_dict(self.config),
            **preprocessing.to_dict(),
            "step": step,
            "weights_sha256": digest,
        }
        write_json(folder / CONFIG_FILE, values)

    @classmethod
    def from_pretrained(cls, path: Path | str, **options: Any) -> Self:
        """The network in evaluation mode, on the CPU.

        Args:
            path: An export folder, or a run folder that contains one.
            options: Further arguments of the class, for example `encoder_execution` of a generator.

        Raises:
            CheckpointError: Files are missing, damaged, of another format or do not belong together.
        """
        folder = export_folder(Path(path), cls.kind)
        file, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        values = read_config(file, cls.kind)
        tensors = load_tensors(weights)
        if sha256_of(weights) != values["weights_sha256"]:
            raise CheckpointError(
                f"{folder}: {WEIGHTS_FILE} is not the file that {CONFIG_FILE} describes (an interrupted save "
                "or copy, or a changed file); export or copy both again"
            )
        try:
            preprocessing = Preprocessing.from_dict(values, file)
            network_class = cls.class_of(values[cls.kind])
            shape = network_class.before_options | values[cls.kind]
            config: Any = from_dict(network_class.config_class, shape, str(file))
            with torch.device("meta"):
                network = network_class(config, modality_set=preprocessing.modality_set, **options)
        except BrasynError as error:
            raise CheckpointError(str(error)) from None
        load_state(network, tensors, weights)
        network.preprocessing = preprocessing
        return network.eval()


def load_weights(network: PretrainedNetwork, path: Path | str) -> None:
    """Load only the weights, from an export, a run folder or a checkpoint (see `weights_file`).

    Raises:
        CheckpointError: There are no weights, or they do not fit.
    """
    file = weights_file(Path(path), network.kind)
    load_state(network, load_tensors(file), file)


def weights_file(path: Path, kind: str = GENERATOR) -> Path:
    """The weights in a checkpoint (averaged ones if it has them), export or run folder."""
    for name in (AVERAGE, f"{kind}.safetensors"):
        if (path / name).is_file():
            return path / name
    return export_folder(path, kind) / WEIGHTS_FILE


def format_name(kind: str) -> str:
    """Value of `format` in config.json."""
    return f"brasyn_dist.{kind}"


def export_folder(path: Path, kind: str = GENERATOR) -> Path:
    """`path`, or its `export` folder, whichever contains a config.json."""
    for folder in (path, path / EXPORT_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise CheckpointError(
        f"{path}: no exported {kind} ({CONFIG_FILE} and {WEIGHTS_FILE}) here or in {EXPORT_FOLDER}/; give "
        "the folder of a finished run" + (" or of `brasyn convert`" if kind == GENERATOR else "")
    )


def read_config(path: Path, kind: str = GENERATOR) -> dict[str, Any]:
    """The content of an export's config.json.

    Raises:
        CheckpointError: The file is damaged, of another format or version, or lacks a key.
    """
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
    """Load `tensors` into `network`; a network on the `meta` device takes them as its parameters."""
    try:
        network.load_state_dict(tensors, assign=next(network.parameters()).is_meta)
    except RuntimeError as error:
        kind = type(network).__name__.lower()
        raise CheckpointError(f"{path} does not fit the configured {kind}: {error}") from None
