"""Exported weights: a folder of two files that is all that synthesis (or segmentation) needs.

    config.json           format, configuration of the network, preprocessing, SHA-256 of the weights
    model.safetensors     weights, float32, contiguous

All networks are stored alike; `format` contains the kind of the network. The SHA-256 connects the
two files: after an interrupted save or a damaged copy, loading fails with an error. In place of a folder,
ORG/NAME names an export on the Hugging Face hub.
"""

import errno
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brasyn_dist.brats import BRATS
from brasyn_dist.common.files import atomic_path, atomic_write_text, read_json, sha256_of, write_json
from brasyn_dist.config import from_dict, to_dict
from brasyn_dist.errors import BrasynError, CheckpointError
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.hub import download, is_hub_name, upload
from brasyn_dist.models.model_card import CARD, CardFacts, export_usage, model_card
from brasyn_dist.preprocessing.preprocessing import Preprocessing

GENERATOR, SEGMENTER, VOLUME, REFINER = "generator", "segmenter", "volume", "refiner"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EXPORT_FOLDER = "export"
"""Folder of the export in a run folder."""
HEAD = "segmentation_head."
"""Start of the parameters of a generator's segmentation head."""
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
        self.source: Path | None = None
        """Export folder; set by `from_pretrained`."""
        self.step: int | None = None
        """Optimiser step of the weights; set by `from_pretrained`."""

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
            step: Optimiser step of the weights, for documentation only. Defaults to the network's own.

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
            save_tensors(tensors, path, {"format": "pt"})
            # safetensors creates files that only their owner can read. Other users run the container or
            # share the folder.
            path.chmod(0o644)
            digest = sha256_of(path)
        self.save_config(folder, digest, preprocessing, step)

    def save_config(
        self, folder: Path, digest: str, preprocessing: Preprocessing | None = None, step: int | None = None
    ) -> None:
        """Write config.json for weights with this SHA-256; the other arguments as `save_pretrained`."""
        preprocessing = preprocessing or self.preprocessing
        assert preprocessing is not None
        values = {
            "format": format_name(self.kind),
            "format_version": FORMAT_VERSION,
            self.kind: to_dict(self.config),
            **preprocessing.to_dict(),
            "step": self.step if step is None else step,
            "weights_sha256": digest,
        }
        write_json(folder / CONFIG_FILE, values)

    def card(self, name: str, usage: str, evaluation: Path | None = None, tags: Sequence[str] = ()) -> str:
        """Model card of a network that was read by `from_pretrained` (see models/model_card.py)."""
        if self.preprocessing is None:
            raise CheckpointError(f"{name}: a model card needs the statistics; use from_pretrained")
        parameters = sum(p.numel() for p in self.parameters())
        run = None if self.source is None else self.source.parent
        facts = CardFacts(self.kind, self.config, parameters, self.preprocessing, run)
        return model_card(facts, name, usage, evaluation, tags)

    def save_for_hub(self, folder: Path, name: str, evaluation: Path | None = None) -> None:
        """Write the export and its model card into `folder`.

        Args:
            folder: Created if it does not exist.
            name: Name of the model, as ORG/NAME if it is uploaded.
            evaluation: Folder of `brasyn evaluate`, whose scores the model card quotes.
        """
        self.save_pretrained(folder)
        atomic_write_text(folder / CARD, self.card(name, export_usage(self.kind, name), evaluation))

    def push_to_hub(
        self, name: str, *, evaluation: Path | None = None, private: bool = True, token: str | None = None
    ) -> str:
        """Upload the export with its model card to the Hugging Face hub.

        Args:
            name: ORG/NAME; created if it does not exist.
            evaluation: Folder of `brasyn evaluate`, whose scores the model card quotes.
            private: Whether a new model is private.
            token: Access token; None: HF_TOKEN or the stored one.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: The package huggingface_hub is not installed.
            CheckpointError: The upload failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_for_hub(Path(folder), name, evaluation)
            return upload(Path(folder), name, private=private, message=f"Upload {self.kind}", token=token)

    @classmethod
    def from_pretrained(cls, path: Path | str, *, revision: str | None = None, **options: Any) -> Self:
        """The network in evaluation mode, on the CPU.

        Args:
            path: An export folder, a run folder that contains one, or ORG/NAME on the Hugging Face hub.
            revision: Branch, tag or commit on the hub; None: `main`.
            options: Further arguments of the class, for example `encoder_execution` of a generator.

        Raises:
            CheckpointError: Files are missing, damaged, of another format or do not belong together.
        """
        folder = export_folder(path, cls.kind, revision)
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
        network.preprocessing, network.source, network.step = preprocessing, folder, values.get("step")
        return network.eval()


def load_weights(network: PretrainedNetwork, path: Path | str) -> None:
    """Load only the weights, from an export, a run folder or a checkpoint (see `weights_file`).

    A segmentation head that only one of both has is left out: it is trained for a term of the objective.

    Raises:
        CheckpointError: There are no weights, or they do not fit.
    """
    file = weights_file(Path(path), network.kind)
    head = {n: t for n, t in network.state_dict().items() if n.startswith(HEAD)}
    given = {n: t for n, t in load_tensors(file).items() if n in head or not n.startswith(HEAD)}
    load_state(network, head | given, file)


def weights_file(path: Path, kind: str = GENERATOR) -> Path:
    """The weights in a checkpoint (averaged ones if it has them), export or run folder."""
    for name in (AVERAGE, f"{kind}.safetensors"):
        if (path / name).is_file():
            return path / name
    return export_folder(path, kind) / WEIGHTS_FILE


def format_name(kind: str) -> str:
    """Value of `format` in config.json."""
    return f"brasyn_dist.{kind}"


def export_folder(path: Path | str, kind: str = GENERATOR, revision: str | None = None) -> Path:
    """`path`, or its `export` folder, whichever contains a config.json.

    ORG/NAME on the hub is downloaded into the cache of huggingface_hub.
    """
    folder = download(str(path), (CONFIG_FILE, WEIGHTS_FILE), revision) if is_hub_name(path) else Path(path)
    for candidate in (folder, folder / EXPORT_FOLDER):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise CheckpointError(
        f"{path}: no exported {kind} ({CONFIG_FILE} and {WEIGHTS_FILE}) here or in {EXPORT_FOLDER}/; give "
        "the folder of a finished run" + (" or of `brasyn convert`" if kind == GENERATOR else "")
    )


def kind_of(path: Path) -> str:
    """Kind of network (such as GENERATOR) that a config.json describes, as far as it can be read."""
    return str(read_json(path).get("format", GENERATOR)).rpartition(".")[2]


def read_config(path: Path, kind: str = GENERATOR) -> dict[str, Any]:
    """The content of an export's config.json.

    Raises:
        CheckpointError: The file is damaged, of another format or version, or lacks a key.
    """
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); export again") from None
    known = {format_name(k): k for k in (GENERATOR, SEGMENTER, VOLUME, REFINER)}
    found = known.get(str(values.get("format"))) if isinstance(values, dict) else None
    if found not in (None, kind):
        raise CheckpointError(
            f"{path}: weights of task {found}, where task {kind} is needed; give weights of task {kind}"
        )
    version = values.get("format_version") if isinstance(values, dict) else None
    if found is None or version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: not a {kind} of {format_name(kind)} version {FORMAT_VERSION}; export again"
        )
    missing = {kind, "statistics", "views", "weights_sha256"} - set(values)
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(sorted(missing))}; export again")
    return values


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: Also where safetensors raises an error of its own, as on a full disk.
    """
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None


def load_state(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load `tensors` into `network`; a network on the `meta` device takes them as its parameters.

    Raises:
        CheckpointError: Names and shapes differ; the message has the first difference and their number.
    """
    expected = network.state_dict()
    missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    problems = [f"{name} is missing" for name in missing] + [f"{name} is unknown" for name in unknown]
    problems += [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f", and {len(problems) - 1} more differences" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{path} does not fit the configured {type(network).__name__.lower()}: {problems[0]}{more}; give "
            "weights of the same configuration"
        )
    network.load_state_dict(tensors, assign=next(network.parameters()).is_meta)
