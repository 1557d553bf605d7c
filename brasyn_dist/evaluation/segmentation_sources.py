"""Where segmentations of completed cases come from: the project's segmenter, a folder of files, or a command run on each case.

    ProjectSegmenter     completed case --the segmenter's views--> labels
    GivenSegmentations   DIR/<case>[-<modality>]-seg.nii.gz
    CommandSegmenter     completed case in a temporary folder --any program--> a file that is read and checked

All are `Segment`s (cases.py): picklable, called in any process, and their labels are on the case's grid or refused. Which order
a program's labels are in cannot be seen from its files, so it must be told (brats.LABEL_ORDERS).
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

from brasyn_dist.brats import MODALITIES, LabelOrder, prediction_name, tumour_type
from brasyn_dist.common.files import sha256_of
from brasyn_dist.common.launch_environment import launch_context
from brasyn_dist.common.processes import kill_tree
from brasyn_dist.data.nifti import CaseVolumes, check_geometry, compress, read_labels
from brasyn_dist.errors import ConfigError, DataError
from brasyn_dist.evaluation.scoring import Prediction

if TYPE_CHECKING:
    from brasyn_dist.models.segmenter import Segmenter

PLACEHOLDERS = ("input", "output", "case", *MODALITIES)
TIMEOUT = 3600.0
"""Seconds that a command may take for one case."""
_QUOTED = 300
"""Characters of a failed command's output that its problem quotes."""


@dataclass(frozen=True)
class ProjectSegmenter:
    """The segmenter of a run or export folder, in volume mode, on a GPU if there is one. Loaded once in each process."""

    path: Path

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        from brasyn_dist.inference.segmentation import segment_volume

        completed = volumes.images.copy()
        completed[MODALITIES.index(prediction.modality)] = synthetic_xyz
        case = volumes.case
        return segment_volume(self.load(), completed, tumour_type(case.cohort, case.name))

    @property
    def basis(self) -> str:
        """Hash of the export's description, which has the weights' hash in it."""
        from brasyn_dist.models.pretrained import CONFIG_FILE, SEGMENTER, export_folder

        return sha256_of(export_folder(self.path, SEGMENTER) / CONFIG_FILE)

    def load(self) -> "Segmenter":
        """Raises CheckpointError if there is none, or it is damaged."""
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
    """Segmentations that were made beforehand; `paths` by (case, synthesised modality)."""

    folder: Path
    paths: Mapping[tuple[str, str], Path]
    order: LabelOrder = "brats"

    @property
    def basis(self) -> list[Any]:
        """Names, sizes and times of the files."""
        statuses = [(path, path.stat()) for path in self.paths.values()]
        return [self.order, *([str(p), s.st_size, s.st_mtime_ns] for p, s in statuses)]

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        path = self.paths.get((prediction.case, prediction.modality))
        if path is None:
            raise DataError(
                f"{self.folder}: none found; expected {prediction.case}-{prediction.modality}-seg.nii.gz, or, "
                f"if this is the only prediction of the case, {prediction.case}-seg.nii.gz or {prediction.case}.nii.gz"
            )
        return read_checked_labels(path, volumes, self.order)


def find_segmentations(
    folder: Path, predictions: Sequence[Prediction], order: LabelOrder = "brats"
) -> GivenSegmentations:
    """Segmentations of these predictions in a folder; those not found become problems of their cases.

    A file that does not say which modality was synthetic is taken only where a case has a single prediction. Raises DataError
    if there is none at all.
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
    """Runs `words`, placeholders filled in, on each completed case; no shell is involved.

    A command that fails, takes longer than `timeout_s` (it is killed with all its children) or leaves no usable segmentation
    raises DataError with the end of its output.
    """

    words: tuple[str, ...]
    order: LabelOrder = "brats"
    timeout_s: float = TIMEOUT

    @property
    def basis(self) -> list[str]:
        """The command; what it runs is its own affair."""
        return [self.order, *self.words]

    def __call__(self, prediction: Prediction, volumes: CaseVolumes, synthetic_xyz: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="brasyn-segment-") as folder:
            values = write_completed_case(Path(folder) / "input", prediction, volumes)
            output = Path(folder) / "output" / f"{prediction.case}-seg.nii.gz"
            output.parent.mkdir()
            values["output"] = str(output)
            self._run([fill(word, values) for word in self.words], Path(folder) / "log.txt")
            if not output.is_file():
                raise DataError(f"the command wrote no {{output}}{_end_of(Path(folder) / 'log.txt')}")
            try:
                return read_checked_labels(output, volumes, self.order)
            except DataError as error:
                raise DataError(f"the command's output cannot be used: {error}") from None

    def _run(self, words: Sequence[str], log: Path) -> None:
        # Output goes to a file: a grandchild that outlives the command would keep a pipe open, and us waiting.
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
                    f"the command took longer than {self.timeout_s:g} s and was killed; see --segment-timeout{_end_of(log)}"
                ) from None
            finally:
                if process.poll() is None:
                    kill_tree(process.pid)
                    process.wait()
        if status != 0:
            raise DataError(f"the command ended with status {status}{_end_of(log)}")


def parse_command(template: str, order: LabelOrder = "brats", timeout_s: float = TIMEOUT) -> CommandSegmenter:
    """Raises ConfigError for what would fail for every case: unknown placeholders, no such program."""
    try:
        words = tuple(shlex.split(template))
    except ValueError as error:
        raise ConfigError(f"--segment-command: {error}") from None
    dummy = dict.fromkeys(PLACEHOLDERS, "")
    try:
        for word in words:
            fill(word, dummy)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"--segment-command: bad placeholder ({error}); known are {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}, "
            "and {{ }} stand for braces"
        ) from None
    if not any("{output}" in word for word in words):
        raise ConfigError("--segment-command: must contain {output}, the file that the command is to write")
    if shutil.which(words[0]) is None:
        raise ConfigError(f"--segment-command: no program {words[0]!r} on this machine")
    return CommandSegmenter(words, order, timeout_s)


def fill(word: str, values: Mapping[str, str]) -> str:
    return word.format_map(values)


def write_completed_case(folder: Path, prediction: Prediction, volumes: CaseVolumes) -> dict[str, str]:
    """The case as a folder of four files with 2023's names, real but for the prediction. Returns the placeholders' values.

    Copies, not links: a container sees nothing outside the folders that it is given.
    """
    case = volumes.case
    target = folder / case.name
    target.mkdir(parents=True)
    values = {"input": str(target), "case": case.name}
    for modality in MODALITIES:
        source = prediction.path if modality == prediction.modality else case.files[modality]
        path = target / prediction_name(case.name, modality)
        if source.name.endswith(".gz"):
            shutil.copyfile(source, path)
        else:
            path.write_bytes(compress(source.read_bytes()))
        values[modality] = str(path)
    return values


def read_checked_labels(path: Path, volumes: CaseVolumes, order: LabelOrder) -> np.ndarray:
    """Canonical labels on the grid of the case. Raises DataError if they are rubbish or lie elsewhere."""
    labels = read_labels(path, order)
    check_geometry(volumes.reference, labels)
    return labels.array


def _end_of(log: Path) -> str:
    text = " ".join(log.read_bytes().decode(errors="replace").split())
    return f"; it said: ...{text[-_QUOTED:]}" if text else "; it said nothing"
