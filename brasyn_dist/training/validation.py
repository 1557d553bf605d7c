"""Validation on fixed held-out slices, with the averaged network.

    the same slices every time --> one synthesis per target modality --> MAE, PSNR, SSIM per slice --> means

The slices are divided among the ranks. Means are taken over all slices in slice order, so they do not depend
on the division.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brasyn_dist.brats import VIEWS
from brasyn_dist.common.panels import grid, slice_panel
from brasyn_dist.config import RunConfig
from brasyn_dist.data.loading.loader import read_samples
from brasyn_dist.distributed.process_group import ProcessGroup
from brasyn_dist.losses.ssim import region_mean, ssim_map
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE, Normaliser, foreground, mask_missing
from brasyn_dist.training.training_data import DeviceBatch, TrainingData


@dataclass(frozen=True)
class SliceScores:
    """Scores of one slice and target modality; None for a region that the slice does not have."""

    slice: int
    target: int
    values: dict[str, float | None]


class SliceValidator(ABC):
    """Reads this rank's part of the held-out slices once. Each call scores a network on them."""

    def __init__(
        self, config: RunConfig, group: ProcessGroup, data: TrainingData, normaliser: Normaliser
    ) -> None:
        assert data.validation is not None
        options, self._panels = config.validation, config.validation.panels
        self._group, self._normaliser, self._modality_set = group, normaliser, data.modality_set
        # Shards are written in a seeded random order, so their first slices are a random sample of patients.
        mine = range(group.rank, min(options.slices, len(data.validation)), group.world)
        chunks = [mine[i : i + options.batch_size] for i in range(0, len(mine), options.batch_size)]
        self._batches: list[tuple[range, Any]] = [
            (rows, read_samples(data.validation, rows, config.image_shape, config.context)) for rows in chunks
        ]

    @abstractmethod
    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(scores by name, on every rank; RGB image panels by name, on rank 0)."""

    @abstractmethod
    def selection_metric(self, scores: Mapping[str, float]) -> float:
        """Model-selection metric; lower is better."""


class GeneratorValidator(SliceValidator):
    """Scores a generator for each target modality."""

    def selection_metric(self, scores: Mapping[str, float]) -> float:
        """Mean absolute error."""
        return scores["mae"]

    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The scores are means, such as `mae` and `t1c/mae`."""
        scores: list[SliceScores] = []
        panels: list[tuple[int, int, np.ndarray]] = []
        for rows, batch in self._batches:
            loaded = self._load(batch)
            for target in range(len(self._modality_set)):
                self._score(network, rows, batch, loaded, target, scores, panels)
        gathered = self._group.gather((scores, panels))
        means = mean_scores([s for part, _ in gathered for s in part], self._modality_set.modalities)
        pictures = {}
        for target, name in enumerate(self._modality_set.modalities):
            chosen = [(row, p) for _, part in gathered for row, t, p in part if t == target]
            if chosen and self._group.is_main:
                pictures[name] = grid([p for _, p in sorted(chosen, key=lambda c: c[0])])
        return means, pictures

    def _load(self, batch: Any) -> Any:
        return DeviceBatch.load(batch, self._normaliser)

    def _real_and_labels(self, loaded: Any) -> tuple[Tensor, Tensor]:
        return loaded.real_BMHW, loaded.labels_BHW

    def _synthesise(
        self, network: nn.Module, inputs_BMHW: Tensor, available_BM: Tensor, target_B: Tensor, loaded: Any
    ) -> Tensor:
        """(B, 1, H, W)."""
        return network(inputs_BMHW, available_BM, target_B, loaded.view_B, loaded.context_BNMHW)[0]

    def _view(self, batch: Any, row: int) -> str:
        """View of the panel of a sample."""
        return VIEWS[int(batch.view[row])]

    def _plane(self, x: Tensor) -> np.ndarray:
        """(..., H, W): what a panel shows of a sample."""
        return x.cpu().numpy()

    @torch.no_grad()
    def _score(
        self,
        network: nn.Module,
        rows: Sequence[int],
        batch: Any,
        loaded: Any,
        target: int,
        scores: list[SliceScores],
        panels: list[tuple[int, int, np.ndarray]],
    ) -> None:
        """Append the scores of each sample, and the panels of the first ones.

        Volumes have the axes (X, Y, Z) in place of (H, W).
        """
        real_BMHW, labels_BHW = self._real_and_labels(loaded)
        available_BM = torch.ones(real_BMHW.shape[:2], dtype=torch.bool, device=real_BMHW.device)
        available_BM[:, target] = False
        target_B = torch.full((len(rows),), target, device=real_BMHW.device)
        inputs_BMHW = mask_missing(real_BMHW, available_BM)
        with self._group.autocast():
            image_B1HW = self._synthesise(network, inputs_BMHW, available_BM, target_B, loaded)
        truth_B1HW = real_BMHW[:, target : target + 1]
        values = slice_scores(
            image_B1HW.to(real_BMHW.dtype),
            truth_B1HW,
            foreground(truth_B1HW),
            labels_BHW,
            self._modality_set.highest_label,
            loaded.has_labels_B,
            float(self._normaliser.range_M[target]),
            self._normaliser.ssim_offset,
        )
        scores += [
            SliceScores(row, target, {k: v[i] for k, v in values.items()}) for i, row in enumerate(rows)
        ]
        # As in the volume pipeline, pixels that are background in two of the available slices become
        # background.
        present_BM11 = available_BM.view(*available_BM.shape, *[1] * (real_BMHW.ndim - 2))
        votes_B1HW = (~foreground(inputs_BMHW) & present_BM11).sum(1, keepdim=True)
        shown_B1HW = torch.where(votes_B1HW >= 2, BACKGROUND_VALUE, image_B1HW.float())
        for i, row in enumerate(rows):
            if row < self._panels:
                panel = slice_panel(
                    self._plane(inputs_BMHW[i]),
                    self._plane(truth_B1HW[i, 0]),
                    self._plane(shown_B1HW[i, 0]),
                    self._plane(labels_BHW[i]) if batch.has_labels[i] else None,
                    available_BM[i].cpu().numpy(),
                    self._normaliser.window,
                    self._view(batch, i),
                    self._modality_set.modalities,
                )
                panels.append((row, target, panel))


def slice_scores(
    image_B1HW: Tensor,
    truth_B1HW: Tensor,
    brain_B1HW: Tensor,
    labels_BHW: Tensor,
    highest_label: int,
    has_labels_B: Tensor,
    data_range: float,
    ssim_offset: float = 0.0,
) -> dict[str, list[float | None]]:
    """MAE and PSNR over the brain, mean SSIM over healthy tissue and over tumour, for each slice.

    Volumes have the axes (X, Y, Z) in place of (H, W).
    `data_range` is the range of PSNR and SSIM (Normaliser.range_M); `ssim_offset` is added before SSIM. SSIM
    is None for slices without labels or without region. Labels above `highest_label` are in neither region.
    """
    tumour_B1HW = ((labels_BHW > 0) & (labels_BHW <= highest_label))[:, None] & brain_B1HW
    healthy_B1HW = (labels_BHW == 0)[:, None] & brain_B1HW
    error_B1HW = (image_B1HW - truth_B1HW) * brain_B1HW
    axes = tuple(range(1, error_B1HW.ndim))
    pixels_B = brain_B1HW.sum(axes).clamp(min=1)
    mae_B = error_B1HW.abs().sum(axes) / pixels_B
    mse_B = error_B1HW.square().sum(axes) / pixels_B
    psnr_B = 10 * torch.log10(data_range**2 / mse_B.clamp(min=1e-12))
    range_B = torch.full_like(mae_B, data_range)
    image, truth = (torch.where(brain_B1HW, x + ssim_offset, 0.0) for x in (image_B1HW, truth_B1HW))
    map_B1HW = ssim_map(image, truth, range_B)
    scores: dict[str, list[float | None]] = {"mae": mae_B.tolist(), "psnr": psnr_B.tolist()}
    for name, region in (("ssim_healthy", healthy_B1HW), ("ssim_tumour", tumour_B1HW)):
        known_B = has_labels_B & region.flatten(1).any(1)
        values = region_mean(map_B1HW, region).tolist()
        scores[name] = [v if known else None for v, known in zip(values, known_B.tolist())]
    return scores


def mean_scores(scores: Sequence[SliceScores], modalities: Sequence[str]) -> dict[str, float]:
    """Means over slices, over all target modalities (`mae`) and for each one (`t1c/mae`).

    Absent regions do not count.
    """
    ordered = sorted(scores, key=lambda s: (s.slice, s.target))
    groups = {"": ordered} | {
        f"{name}/": [s for s in ordered if s.target == m] for m, name in enumerate(modalities)
    }
    means: dict[str, float] = {}
    for prefix, chosen in groups.items():
        for name in chosen[0].values if chosen else ():
            known = [v for s in chosen if (v := s.values[name]) is not None]
            if known:
                means[prefix + name] = float(np.mean(known))
    return means
