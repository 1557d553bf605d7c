"""Training a segmenter alone (method, section 4): one network, one update a batch, focal Tversky loss.

Loop, stream, checkpoints, resume, stop and telemetry are those of the generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from brasyn_dist.brats import LABEL_NAMES, REGIONS, VIEWS
from brasyn_dist.common.typed_yaml import to_dict
from brasyn_dist.config import RuntimeConfig, SegmenterRunConfig
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.distributed.trainable import Trainable
from brasyn_dist.losses.tversky import focal_tversky, labelled_only
from brasyn_dist.models.pretrained import load_weights
from brasyn_dist.models.segmenter import Segmenter, build_segmenter
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.training.build import adam
from brasyn_dist.training.compilation import compile_in_place, place
from brasyn_dist.training.ema import average_of
from brasyn_dist.training.gan_step import DeviceBatch, Loader, add_sums, chunks
from brasyn_dist.training.schedule import scaled_rate
from brasyn_dist.training.state import TrainState
from brasyn_dist.training.training_data import TrainingData, check_tumour_types, choose_training
from brasyn_dist.training.validation import SliceValidator

LABEL_KEYS = {1: "NETC", 2: "ED", 3: "ET"}
"""Canonical labels as they are called in metrics."""
CLASSES = 1 + len(LABEL_NAMES)


class SegmenterStep:
    """One update of the segmenter. Calling it returns device tensors only: nothing in here waits for the device."""

    variants = 1
    headline = ("Tversky", "tversky")

    def __init__(
        self,
        config: SegmenterRunConfig,
        distributed: Distributed,
        segmenter: Trainable,
        normaliser: Normaliser,
    ) -> None:
        self._config = config
        self._distributed = distributed
        self._segmenter = segmenter
        self._loader = Loader(config, normaliser)

    def update(self, batch: SliceBatch, number: int, rate: float) -> dict[str, Tensor]:
        with self._distributed.clock.phase("segmenter"):
            return self._update(self._loader(batch), rate)

    def _update(self, loaded: DeviceBatch, rate: float) -> dict[str, Tensor]:
        config, distributed = self._config, self._distributed
        scale = distributed.world / config.training.global_batch_size
        sums: dict[str, Tensor] = {}
        for start, stop in chunks(len(loaded), config.training.micro_batch_size):
            part = loaded.rows(start, stop)
            with self._segmenter.accumulate(last=stop == len(loaded)):
                logits_B4HW = self._segmenter.wrapped(part.real_BMHW, part.view_B, part.type_B)
                loss_B = focal_tversky(config.tversky, logits_B4HW, part.labels_BHW)
                terms = {"tversky": labelled_only(loss_B, part.has_labels_B)}
                self._segmenter.backward(terms["tversky"].sum() * scale)
            add_sums(sums, terms)
        sums["segmenter_norm"] = self._segmenter.clip_and_step(config.optimizer.clip_norm, rate)
        return sums

    def trace(self, batch: SliceBatch, number: int) -> list[list[object]]:
        return [[] for _ in batch.keys]


class SegmenterValidator(SliceValidator):
    """Dice of each label and region, its pixels counted over all held-out slices together, and the mean loss.

    Slices of one case are no independent cases: these numbers choose the best network, they are no result.
    """

    def badness(self, scores: Mapping[str, float]) -> float:
        return 1 - scores["dice"]

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """`dice` (mean over labels), `dice/NETC`, ..., `dice/WT`; panels: reference and prediction beside each other."""
        confusion = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
        pictures: list[tuple[int, dict[str, Any]]] = []
        device = self._normaliser.device
        for rows, batch in self._batches:
            slices_BMHW = self._normaliser(batch.planes.to(device))
            with self._distributed.autocast():
                logits_B4HW = network(slices_BMHW, batch.view.to(device), batch.tumour_type.to(device))
            predicted_BHW = logits_B4HW.argmax(1).cpu()
            labelled = batch.has_labels
            confusion += confusion_matrix(batch.labels[labelled], predicted_BHW[labelled])
            pictures += [
                (
                    row,
                    {
                        "slices": slices_BMHW[i].cpu().numpy(),
                        "labels": batch.labels[i].numpy(),
                        "predicted": predicted_BHW[i].numpy(),
                        "view": VIEWS[int(batch.view[i])],
                    },
                )
                for i, row in enumerate(rows)
                if row < self._panels
            ]
        gathered = self._distributed.gather((confusion, pictures))
        scores = dice_scores(torch.stack([c for c, _ in gathered]).sum(0))
        if not self._distributed.is_main:
            return scores, {}
        chosen = sorted((p for _, part in gathered for p in part), key=lambda p: p[0])
        return scores, draw_labels([p for _, p in chosen], self._normaliser.window)


def confusion_matrix(labels: Tensor, predicted: Tensor) -> Tensor:
    """(4, 4) int64: pixels of reference class (row) that were predicted as class (column)."""
    pairs = labels.long().flatten() * CLASSES + predicted.long().flatten()
    return torch.bincount(pairs, minlength=CLASSES * CLASSES).view(CLASSES, CLASSES)


def dice_scores(confusion: Tensor) -> dict[str, float]:
    """Dice of each label and region, and `dice`, the mean over labels; 1 where neither side has a pixel."""
    groups = {LABEL_KEYS[label]: (label,) for label in LABEL_NAMES} | REGIONS
    scores = {}
    for name, labels in groups.items():
        members = list(labels)
        both = int(confusion[members][:, members].sum())
        total = int(confusion[members].sum() + confusion[:, members].sum())
        scores[f"dice/{name}"] = 2 * both / total if total else 1.0
    mean = float(np.mean([scores[f"dice/{LABEL_KEYS[label]}"] for label in LABEL_NAMES]))
    return {"dice": mean, **scores}


def draw_labels(pictures: Sequence[dict[str, Any]], window: tuple[float, float]) -> dict[str, np.ndarray]:
    """One RGB image: for each slice its four modalities, the reference and the prediction."""
    from brasyn_dist.common.panels import grid, label_panel

    if not pictures:
        return {}
    rows = [label_panel(p["slices"], p["labels"], p["predicted"], window, p["view"]) for p in pictures]
    return {"segmentation": grid(rows)}


@dataclass(frozen=True)
class SegmenterTask:
    """See training/task.py."""

    config: SegmenterRunConfig

    validator = SegmenterValidator

    def with_runtime(self, runtime: RuntimeConfig) -> "SegmenterTask":
        return SegmenterTask(replace(self.config, runtime=runtime))

    def identity(self) -> dict[str, Any]:
        return {"segmenter": to_dict(self.config.segmenter)}

    def sources(self) -> dict[str, Any]:
        return {}

    def check(self, data: TrainingData) -> None:
        check_tumour_types(data.training)

    def build_state(self, distributed: Distributed) -> TrainState:
        config = self.config
        segmenter = build_segmenter(config.segmenter, config.seed)
        if config.checkpoint.init_from is not None:
            load_weights(segmenter, config.checkpoint.init_from)
        place(config, distributed, segmenter)
        average = average_of(segmenter) if config.training.ema_decay > 0 else None
        compile_in_place(config, distributed.device, segmenter)
        rate = scaled_rate(config.optimizer, config.training.global_batch_size)
        trainable = distributed.prepare(segmenter, adam(config, segmenter, rate), segmenter)
        return TrainState({"segmenter": trainable}, average)

    def build_step(
        self, distributed: Distributed, state: TrainState, normaliser: Normaliser
    ) -> SegmenterStep:
        return SegmenterStep(self.config, distributed, state.networks["segmenter"], normaliser)

    def export(self, network: nn.Module, folder: Path, data: TrainingData, step: int) -> None:
        cast(Segmenter, network).save_pretrained(folder, data.preprocessing, step)

    def facts(self, state: TrainState, distributed: Distributed) -> dict[str, str]:
        count = state.networks["segmenter"].parameter_count
        return {"segmenter": f"{count:,} parameters, {len(self.config.segmenter.widths)} stages"}


def cost(config: SegmenterRunConfig) -> str:
    """Text for `--dry-run`. Reads the shard set's index, trains nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from brasyn_dist.data.format.index import ShardIndex
    from brasyn_dist.training.schedule import total_steps

    data = config.data
    index = ShardIndex.load(data.shards, data.cache_dir, data.cache_gib)
    training = choose_training(index, data)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        segmenter = Segmenter(config.segmenter)
        number_B = torch.zeros(1, dtype=torch.int64)
        segmenter(torch.empty(1, 4, *config.image_shape), number_B, number_B).sum().backward()
    batch, steps = config.training.global_batch_size, total_steps(config.training, len(training))
    lines = {
        "run": str(config.run_dir),
        "data": f"{len(training)} training slices ({', '.join(data.views)}) with at least "
        f"{data.min_tumour_fraction:.1%} tumour, {data.shards}",
        "steps": f"{steps} global batches of {batch} slices, {steps * batch / len(training):.2f} epochs",
        "segmenter": f"{sum(p.numel() for p in segmenter.parameters()):,} parameters",
        "operations": f"{counter.get_total_flops() / 1e9:.0f} GFLOP a slice, forward and backward",
    }
    return "\n".join(f"{name:<16}{value}" for name, value in lines.items())
