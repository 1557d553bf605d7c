"""Validation on fixed held-out slices, with the averaged network.

    the same slices every time --> one synthesis for each target modality --> MAE, PSNR, SSIM per slice --> means

Ranks share out the slices; the means are taken over all of them in slice order, so they do not depend on who did which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brasyn_dist.brats import MODALITIES, VIEWS, ImageSize
from brasyn_dist.data.format.index import Selection
from brasyn_dist.data.loading.loader import SliceBatch, read_samples
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.losses.ssim import region_mean, ssim_map
from brasyn_dist.preprocessing.normalisation import BACKGROUND_VALUE, Normaliser, foreground, mask_missing


@dataclass(frozen=True)
class Scores:
    """Scores of one slice and target modality; a region that the slice lacks has None."""

    slice: int
    target: int
    values: dict[str, float | None]


class SliceValidator:
    """Reads this rank's share of the slices once; each call scores a network on them."""

    def __init__(
        self,
        selection: Selection,
        slices: int,
        batch_size: int,
        panels: int,
        normaliser: Normaliser,
        distributed: Distributed,
        image_size: ImageSize,
    ) -> None:
        # Shards are written in a seeded random order: their first slices are a fair sample of patients.
        count = min(slices, len(selection))
        self._mine = list(range(distributed.rank, count, distributed.world))
        self._batches = [
            (rows, read_samples(selection, rows, image_size))
            for rows in (self._mine[i : i + batch_size] for i in range(0, len(self._mine), batch_size))
        ]
        self._panels = panels
        self._normaliser = normaliser
        self._distributed = distributed

    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(scores by name, image panels by name) on every rank (panels: on rank 0)."""
        raise NotImplementedError

    def badness(self, scores: Mapping[str, float]) -> float:
        """The number by which the best network is chosen: the smallest."""
        raise NotImplementedError


class Validator(SliceValidator):
    """Scores a generator, each target modality in turn."""

    def badness(self, scores: Mapping[str, float]) -> float:
        return scores["mae"]

    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(means by name, such as `mae` and `t1c/mae`; image panels by name) on every rank (panels: on rank 0)."""
        scores: list[Scores] = []
        pictures: list[tuple[int, int, dict[str, Any]]] = []
        for rows, batch in self._batches:
            for target in range(len(MODALITIES)):
                images, result = self._score(network, rows, batch, target)
                scores += result
                pictures += [(r, target, images[i]) for i, r in enumerate(rows) if r < self._panels]
        gathered = self._distributed.gather((scores, pictures))
        means = mean_scores([s for part, _ in gathered for s in part])
        pictures = [p for _, part in gathered for p in part]
        panels = draw_panels(pictures, self._normaliser.window) if self._distributed.is_main else {}
        return means, panels

    @torch.no_grad()
    def _score(
        self, network: nn.Module, rows: Sequence[int], batch: SliceBatch, target: int
    ) -> tuple[list[dict[str, Any]], list[Scores]]:
        device = self._normaliser.device
        real_BMHW = self._normaliser(batch.planes.to(device), medians_BM=batch.medians.to(device))
        labels_BHW = batch.labels.to(device)
        size = len(rows)
        available_BM = torch.ones(size, len(MODALITIES), dtype=torch.bool, device=device)
        available_BM[:, target] = False
        target_B = torch.full((size,), target, device=device)
        inputs_BMHW = mask_missing(real_BMHW, available_BM)
        with self._distributed.autocast():
            image_B1HW, _ = network(inputs_BMHW, available_BM, target_B, batch.view.to(device))
        truth_B1HW = real_BMHW[:, target : target + 1]
        values = slice_scores(
            image_B1HW.to(real_BMHW.dtype),
            truth_B1HW,
            foreground(truth_B1HW),
            labels_BHW,
            batch.has_labels.to(device),
            float(self._normaliser.range_M[target]),
        )
        # Pictures show what the volume pipeline would write: background where two of the given slices have it.
        votes_B1HW = (~foreground(inputs_BMHW) & available_BM[:, :, None, None]).sum(1, keepdim=True)
        shown_B1HW = torch.where(votes_B1HW >= 2, BACKGROUND_VALUE, image_B1HW.float())
        images = [
            {
                "inputs": inputs_BMHW[i].cpu().numpy(),
                "available": available_BM[i].cpu().numpy(),
                "target": truth_B1HW[i, 0].cpu().numpy(),
                "synthetic": shown_B1HW[i, 0].cpu().numpy(),
                "view": VIEWS[int(batch.view[i])],
                "labels": labels_BHW[i].cpu().numpy() if batch.has_labels[i] else None,
            }
            for i, row in enumerate(rows)
            if row < self._panels
        ]
        return images, [Scores(r, target, {k: v[i] for k, v in values.items()}) for i, r in enumerate(rows)]


def slice_scores(
    image_B1HW: Tensor,
    truth_B1HW: Tensor,
    brain_B1HW: Tensor,
    labels_BHW: Tensor,
    has_labels_B: Tensor,
    data_range: float,
) -> dict[str, list[float | None]]:
    """MAE and PSNR over the brain, mean SSIM over healthy tissue and over tumour, per slice, in normalised units.

    PSNR's and SSIM's range is `data_range` (clip maximum / std). Without labels the regions are unknown: None.
    """
    tumour_B1HW = (labels_BHW > 0)[:, None] & brain_B1HW
    error_B1HW = (image_B1HW - truth_B1HW) * brain_B1HW
    pixels_B = brain_B1HW.sum((1, 2, 3)).clamp(min=1)
    mae_B = error_B1HW.abs().sum((1, 2, 3)) / pixels_B
    mse_B = error_B1HW.square().sum((1, 2, 3)) / pixels_B
    psnr_B = 10 * torch.log10(data_range**2 / mse_B.clamp(min=1e-12))
    range_B = torch.full_like(mae_B, data_range)
    map_B1HW = ssim_map(
        torch.where(brain_B1HW, image_B1HW, 0.0), torch.where(brain_B1HW, truth_B1HW, 0.0), range_B
    )
    scores: dict[str, list[float | None]] = {"mae": mae_B.tolist(), "psnr": psnr_B.tolist()}
    for name, region in (("ssim_healthy", brain_B1HW & ~tumour_B1HW), ("ssim_tumour", tumour_B1HW)):
        known_B = has_labels_B & region.flatten(1).any(1)
        values = region_mean(map_B1HW, region).tolist()
        scores[name] = [v if known else None for v, known in zip(values, known_B.tolist())]
    return scores


def mean_scores(scores: Sequence[Scores]) -> dict[str, float]:
    """Means over slices, for each target modality (`t1c/mae`) and over all (`mae`); absent regions do not count."""
    ordered = sorted(scores, key=lambda s: (s.slice, s.target))
    means: dict[str, float] = {}
    for prefix, chosen in [("", ordered)] + [
        (f"{name}/", [s for s in ordered if s.target == m]) for m, name in enumerate(MODALITIES)
    ]:
        for name in chosen[0].values if chosen else ():
            known = [v for s in chosen if (v := s.values[name]) is not None]
            if known:
                means[prefix + name] = float(np.mean(known))
    return means


def draw_panels(
    pictures: Sequence[tuple[int, int, dict[str, Any]]], window: tuple[float, float]
) -> dict[str, np.ndarray]:
    """One RGB image for each target modality: its slices below each other."""
    from brasyn_dist.common.panels import grid, slice_panel

    panels = {}
    for target, name in enumerate(MODALITIES):
        rows = [p for _, t, p in sorted(pictures, key=lambda p: p[:2]) if t == target]
        if rows:
            panels[name] = grid(
                [
                    slice_panel(
                        p["inputs"],
                        p["target"],
                        p["synthetic"],
                        p["labels"],
                        p["available"],
                        window,
                        p["view"],
                    )
                    for p in rows
                ]
            )
    return panels
