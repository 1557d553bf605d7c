"""Training of a segmenter: one network, one update per batch, focal Tversky loss.

See docs/explanation/method.md, section 4.
Loop, data stream, checkpoints, resume, stop and loggers are those of the generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brasyn_dist.brats import BRATS, ED, ET, LABEL_NAMES, NETC, VIEWS
from brasyn_dist.common.panels import grid, label_panel
from brasyn_dist.config import SegmenterRunConfig, to_dict
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.losses.tversky import focal_tversky, labelled_only
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.segmenter import build_segmenter
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.gan_step import add_sums, micro_batches
from brasyn_dist.training.network_setup import state_of_one
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.task import Task
from brasyn_dist.training.training_data import BatchLoader, DeviceBatch, TrainingData
from brasyn_dist.training.validation import SliceValidator

SHORT_NAMES = {LABEL_NAMES[NETC]: "NETC", LABEL_NAMES[ED]: "ED", LABEL_NAMES[ET]: "ET"}
"""Names of labels in metrics. Other labels have their own name there."""


class SegmenterStep:
    """Updates the segmenter. See `Step`."""

    variants = 1
    headline = ("Tversky", "tversky")

    def __init__(
        self, config: SegmenterRunConfig, group: ProcessGroup, segmenter: Trainable, normaliser: Normaliser
    ) -> None:
        self._config, self._group, self._segmenter = config, group, segmenter
        self._loader = BatchLoader(config, normaliser)
        self.normaliser = normaliser

    def update(self, batch: SliceBatch, number: int, rate: float) -> dict[str, Tensor]:
        """One update of the segmenter; see `Step`."""
        return self(self._loader(batch), rate)

    def __call__(self, batch: DeviceBatch, rate: float) -> dict[str, Tensor]:
        """One update on this rank's part of a global batch."""
        config, sums = self._config, {}  # type: ignore[var-annotated]
        scale = self._group.world / config.training.global_batch_size
        with self._group.clock.phase("segmenter"):
            for start, stop in micro_batches(len(batch), config.training.micro_batch_size):
                part = batch.rows(start, stop)
                with self._segmenter.accumulate(last=stop == len(batch)):
                    logits_BCHW = self._segmenter.wrapped(part.real_BMHW, part.view_B, part.type_B)
                    loss_B = focal_tversky(config.tversky, logits_BCHW, part.labels_BHW)
                    terms = {"tversky": labelled_only(loss_B, part.has_labels_B)}
                    self._segmenter.backward(terms["tversky"].sum() * scale)
                add_sums(sums, terms)
            sums["segmenter_norm"] = self._segmenter.clip_and_step(config.optimizer.clip_norm, rate)
        return sums

    def trace(self, batch: SliceBatch, number: int) -> list[list[object]]:
        """Nothing: there are no masks."""
        return [[] for _ in batch.keys]


class SegmenterValidator(SliceValidator):
    """Dice of each label and region over the pixels of all held-out slices, and the mean loss.

    These numbers select the best network. They are no result, since slices of one case are not independent.
    """

    def __init__(
        self, config: SegmenterRunConfig, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> None:
        super().__init__(config, group, data, normaliser)
        self._tversky = config.tversky

    def selection_metric(self, scores: Mapping[str, float]) -> float:
        """1 - mean Dice."""
        return 1 - scores["dice"]

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """`dice` (mean over labels), `dice/NETC`, ..., `dice/WT`, `tversky` (labelled slices); panels."""
        classes = 1 + max(self._modality_set.labels)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        losses: list[tuple[int, float]] = []
        panels: list[tuple[int, np.ndarray]] = []
        for rows, batch in self._batches:
            loaded = DeviceBatch.load(batch, self._normaliser)
            with self._group.autocast():
                logits_BCHW = network(loaded.real_BMHW, loaded.view_B, loaded.type_B)
            predicted_BHW, labelled_B = logits_BCHW.argmax(1).cpu(), batch.has_labels
            confusion += confusion_matrix(batch.labels[labelled_B], predicted_BHW[labelled_B], classes)
            loss_B = focal_tversky(self._tversky, logits_BCHW, loaded.labels_BHW).tolist()
            losses += [(row, loss_B[i]) for i, row in enumerate(rows) if labelled_B[i]]
            for i, row in enumerate(rows):
                if row < self._panels:
                    slices_MHW = loaded.real_BMHW[i].cpu().numpy()
                    labels = (batch.labels[i].numpy(), predicted_BHW[i].numpy())
                    view = VIEWS[int(batch.view[i])]
                    window, names = self._normaliser.window, self._modality_set.modalities
                    panels.append((row, label_panel(slices_MHW, *labels, window, view, names)))
        gathered = self._group.gather((confusion, losses, panels))
        scores = dice_scores(torch.stack([c for c, _, _ in gathered]).sum(0), self._modality_set)
        ordered = sorted(loss for _, part, _ in gathered for loss in part)
        if ordered:
            scores["tversky"] = float(np.mean([loss for _, loss in ordered]))
        pictures = sorted((p for _, _, part in gathered for p in part), key=lambda p: p[0])
        if not pictures or not self._group.is_main:
            return scores, {}
        return scores, {"segmentation": grid([picture for _, picture in pictures])}


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int = 4) -> Tensor:
    """(C, C) int64: number of pixels of each reference class (row) and predicted class (column)."""
    labels = torch.where(labels < classes, labels, 0)  # a resection cavity is background
    pairs = labels.long().flatten() * classes + predicted.long().flatten()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def dice_scores(confusion: Tensor, modality_set: ModalitySet = BRATS) -> dict[str, float]:
    """Dice of each label and region, and `dice`, the mean over labels.

    Dice is 1 if neither side has a pixel.
    """
    labels: dict[str, tuple[int, ...]] = {
        SHORT_NAMES.get(name, name): (label,) for label, name in modality_set.labels.items()
    }
    scores = {}
    for name, united in {**labels, **modality_set.regions}.items():
        members = list(united)
        both = int(confusion[members][:, members].sum())
        total = int(confusion[members].sum() + confusion[:, members].sum())
        scores[f"dice/{name}"] = 2 * both / total if total else 1.0
    return {"dice": float(np.mean([scores[f"dice/{name}"] for name in labels])), **scores}


@dataclass(frozen=True)
class SegmenterTask(Task):
    """A segmenter."""

    config: SegmenterRunConfig

    def identity(self) -> dict[str, Any]:
        """What a resume must not change."""
        return {"segmenter": to_dict(self.config.segmenter)}

    def build_state(self, group: ProcessGroup, modality_set: ModalitySet = BRATS) -> TrainState:
        """Segmenter with its optimiser, and the counters."""
        config = self.config
        return state_of_one(config, group, build_segmenter(config.segmenter, config.seed, modality_set))

    def build_step(self, group: ProcessGroup, state: TrainState, normaliser: Normaliser) -> SegmenterStep:
        """See `Task.build_step`."""
        return SegmenterStep(self.config, group, state.main, normaliser)

    def build_validator(
        self, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> SegmenterValidator:
        """See `Task.build_validator`."""
        return SegmenterValidator(self.config, group, data, normaliser)

    def describe(self, state: TrainState, group: ProcessGroup) -> dict[str, str]:
        """Networks in words, for the log."""
        count, stages = state.main.parameter_count, len(self.config.segmenter.widths)
        return {"segmenter": f"{count:,} parameters, {stages} stages"}
