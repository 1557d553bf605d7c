"""Sources of segmentations of completed cases: the project's segmenter, files, or a command for each case.

    ProjectSegmenter     completed case --the segmenter's views--> labels
    GivenSegmentations   DIR/<case>[-<modality>]-seg.nii.gz
    CommandSegmenter     completed case in a temporary folder --any program--> a file that is read and checked

Each is a `CaseSegmenter` (scoring.py). Labels that are not on the grid of the case are refused. The files
of a program do not show the order of its labels, so the user must give it (brats.LABEL_ORDERS).
"""

import shlex
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brasyn_dist.brats import BRATS, LabelOrder, prediction_name, tumour_type
from brasyn_dist.common.files import sha256_of
from brasyn_dist.common.launch_environment import launch_context
from brasyn_dist.common.processes import kill_tree
from brasyn_dist.data.nifti import CaseVolumes, check_geometry, compressed_file, read_labels
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.evaluation.scoring import Prediction
from brasyn_dist.modality_set import ModalitySet

if TYPE_CHECKING:
    from brasyn_dist.models.segmenter import Segmenter

TIMEOUT = 3600.0
"""Default time limit of a command for one case, in seconds."""
_QUOTED = 300
"""Characters of a failed command's output that the error message quotes."""


@dataclass(frozen=True)
class ProjectSegmenter:
    """The segmenter of a run or export folder, on a GPU if there is one. Loaded once in each process."""

    path: Path

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        """Labels (x, y, z) of a completed case."""
        from brasyn_dist.inference.segmentation import segment_volume

        completed = volumes.images.copy()
        completed[volumes.modalities.index(prediction.modality)] = synthetic_xyz
        case = volumes.case
        return segment_volume(self.load(), completed, tumour_type(case.cohort, case.name))

    @property
    def fingerprint(self) -> str:
        """Hash of the export's config.json, which contains the hash of the weights."""
        from brasyn_dist.models.pretrained import CONFIG_FILE, SEGMENTER, export_folder

        return sha256_of(export_folder(self.path, SEGMENTER) / CONFIG_FILE)

    def load(self) -> "Segmenter":
        """The loaded network. Raises CheckpointError if there is none, or it is damaged."""
        return _segmenter(self.path)


@cache
def _segmenter(path: Path) -> "Segmenter":
    import torch

    from brasyn_dist.inference.ensemble import own_device
    from brasyn_dist.models.segmenter import Segmenter

    device = own_device(launch_context()) or ("cuda" if torch.cuda.is_available() else "cpu")
    return Segmenter.from_pretrained(path).to(device)


@dataclass(frozen=True)
class GivenSegmentations:
    """Segmentations from files; `paths` by (case, synthesised modality)."""

    folder: Path
    paths: Mapping[tuple[str, str], Path]
    order: LabelOrder = "brats"

    @property
    def fingerprint(self) -> list[Any]:
        """Names, sizes and modification times of the files."""
        statuses = [(path, path.stat()) for path in self.paths.values()]
        return [self.order, *([str(p), s.st_size, s.st_mtime_ns] for p, s in statuses)]

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        """Labels (x, y, z) from the file of a completed case."""
        path = self.paths.get((prediction.case, prediction.modality))
        if path is None:
            raise DataError(
                f"{self.folder}: none found; expected {prediction.case}-{prediction.modality}-seg.nii.gz "
                f"(if this is the only prediction of the case: {prediction.case}-seg.nii.gz or "
                f"{prediction.case}.nii.gz)"
            )
        return read_checked_labels(path, volumes, self.order)


def find_segmentations(
    folder: Path, predictions: Sequence[Prediction], order: LabelOrder = "brats"
) -> GivenSegmentations:
    """Segmentations of these predictions in a folder. A missing one becomes a problem of its case.

    A file name without the synthesised modality is accepted only if the case has a single prediction.

    Raises:
        DataError: The folder has no segmentation of any prediction.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds CASE-seg.nii.gz")
    count = Counter(p.case for p in predictions)
    paths = {}
    for p in predictions:
        stems = [f"{p.case}-{p.modality}-seg"]
        if count[p.case] == 1:
            stems += [f"{p.case}-seg", f"{p.case}_seg", p.case]
        files = (folder / f"{stem}{end}" for stem in stems for end in (".nii.gz", ".nii"))
        if (path := next((f for f in files if f.is_file()), None)) is not None:
            paths[p.case, p.modality] = path
    if not paths:
        raise DataError(
            f"{folder}: no segmentation of any predicted case; expected names such as CASE-seg.nii.gz"
        )
    return GivenSegmentations(folder, paths, order)


@dataclass(frozen=True)
class CommandSegmenter:
    """Runs `words`, with placeholders filled in, on each completed case, without a shell.

    A command that fails, exceeds `timeout_s` (it is then killed with all its children) or writes no usable
    segmentation raises DataError with the end of its output.
    """

    words: tuple[str, ...]
    order: LabelOrder = "brats"
    timeout_s: float = TIMEOUT

    @property
    def fingerprint(self) -> list[str]:
        """The words of the command; changes of the program itself are not detected."""
        return [self.order, *self.words]

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        """Labels (x, y, z) that the command writes for a completed case."""
        with tempfile.TemporaryDirectory(prefix="brasyn-segment-") as folder:
            values = write_completed_case(Path(folder) / "input", prediction, volumes)
            output = Path(folder) / "output" / f"{prediction.case}-seg.nii.gz"
            output.parent.mkdir()
            values["output"] = str(output)
            self._run([word.format_map(values) for word in self.words], Path(folder) / "log.txt")
            if not output.is_file():
                raise DataError(f"the command wrote no {{output}}{_end_of(Path(folder) / 'log.txt')}")
            try:
                return read_checked_labels(output, volumes, self.order)
            except DataError as error:
                raise DataError(f"the command's output cannot be used: {error}") from None

    def _run(self, words: Sequence[str], log: Path) -> None:
        # Output goes to a file: a grandchild that outlives the command would keep a pipe open and block us.
        with log.open("wb") as file:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                )
            except OSError as error:
                raise DataError(f"cannot start {words[0]} ({error.strerror})") from None
            try:
                status = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                raise DataError(
                    f"the command took longer than {self.timeout_s:g} s and was killed; see --segment-timeout"
                    f"{_end_of(log)}"
                ) from None
            finally:
                if process.poll() is None:
                    kill_tree(process.pid)
                    process.wait()
        if status != 0:
            raise DataError(f"the command ended with status {status}{_end_of(log)}")


def parse_command(
    template: str, order: LabelOrder = "brats", timeout_s: float = TIMEOUT, modality_set: ModalitySet = BRATS
) -> CommandSegmenter:
    """Split and check a command with placeholders.

    Raises:
        ConfigError: The command would fail for every case: unknown placeholder, no {output}, no such program.
    """
    known = ("input", "output", "case", *modality_set.modalities)
    try:
        words = tuple(shlex.split(template))
    except ValueError as error:
        raise ConfigError(f"--segment-command: {error}") from None
    try:
        for word in words:
            word.format_map(dict.fromkeys(known, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"--segment-command: bad placeholder ({error}); known are "
            f"{', '.join(f'{{{p}}}' for p in known)}; {{{{ }}}} stand for braces"
        ) from None
    if not any("{output}" in word for word in words):
        raise ConfigError("--segment-command: must contain {output}, the file that the command is to write")
    if shutil.which(words[0]) is None:
        raise ConfigError(f"--segment-command: no program {words[0]!r} on this machine")
    return CommandSegmenter(words, order, timeout_s)


def write_completed_case(folder: Path, prediction: Prediction, volumes: CaseVolumes) -> dict[str, str]:
    """Write the completed case as a folder with a file for each modality, with the names of 2023.

    The files are copies: a container sees nothing outside of the folders that are mounted into it.

    Returns:
        The values of the placeholders.
    """
    case = volumes.case
    target = folder / case.name
    target.mkdir(parents=True)
    values = {"input": str(target), "case": case.name}
    for modality in volumes.modalities:
        source = prediction.path if modality == prediction.modality else case.files[modality]
        path = target / prediction_name(case.name, modality)
        path.write_bytes(compressed_file(source))
        values[modality] = str(path)
    return values


def read_checked_labels(path: Path, volumes: CaseVolumes, order: LabelOrder) -> np.ndarray:
    """Canonical labels. Raises DataError if the file is damaged or is not on the grid of the case.

    In order `brats`, 4 and the values of BraTS-PED mean what they mean in the reference.
    """
    if order == "brats" and volumes.case.label_order in ("brats2024", "ped"):
        order = volumes.case.label_order
    labels = read_labels(path, order)
    check_geometry(volumes.reference, labels)
    return labels.array


def _end_of(log: Path) -> str:
    text = " ".join(log.read_bytes().decode(errors="replace").split())
    return f"; its output ends with: ...{text[-_QUOTED:]}" if text else "; it has no output"
