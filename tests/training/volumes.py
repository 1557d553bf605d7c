"""Small networks of volumes and made-up patches for tests of one update, in this process, without Accelerate."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from brasyn_dist.brats import MODALITIES, find_cases
from brasyn_dist.config import PatchRunConfig, load_config
from brasyn_dist.data.loading.patches import PatchBatch, PatchMemory
from brasyn_dist.data.sharding.write_shards import ShardOptions, make_shards
from brasyn_dist.distributed.single_process import SingleProcess
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.volume_task import VolumeStep, VolumeTask
from tests.small import small_cases

SIZE, BATCH = (16, 12, 8), 4
SMALL = (
    "patches.size=[16,12,8]", f"training.global_batch_size={BATCH}", "runtime.threads=1", "order.availability=mixed",
    "augmentation.mirror=0.5", "augmentation.contrast=0.1",
)  # fmt: skip
VOLUME = ("task=volume", "volume.widths=[16,32]", "volume.units=1", "volume.condition=8", *SMALL)
REFINER = ("task=refiner", "refiner.channels=4", "refiner.layers=1", "refiner.smoothing=1", *SMALL)
TASKS = {"volume": VOLUME, "refiner": REFINER}


def small_config(task: str, *overrides: str) -> PatchRunConfig:
    return load_config(None, [*TASKS[task], *overrides], PatchRunConfig)


def made_up_patches(config: PatchRunConfig) -> PatchBatch:
    """Patches with brain and background; every other one has tumour, one has no labels at all."""
    count, noise = config.training.global_batch_size, torch.Generator().manual_seed(0)
    batch = PatchMemory(config.patches.size, "int16", 4, config.task == "refiner").batch(0, slice(0, count))
    for volumes in (batch.volumes, batch.stage1):
        if volumes is not None:
            volumes.copy_(torch.randint(1, 4000, volumes.shape, generator=noise))
            volumes[:, :, :2] = 0
    batch.labels.zero_()
    batch.labels[::2, 4:9, 2:7] = 3
    batch.has_labels.copy_(torch.arange(count) != 3)
    for values in (batch.medians, batch.stage1_medians):
        values.fill_(1500.0)
    return batch


class Update:
    """One update: `update()`."""

    def __init__(self, config: PatchRunConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config, group = config, SingleProcess(config.runtime)
        self.state = VolumeTask(config).build_state(group)
        self.state.main.module.to(dtype)
        normaliser = Normaliser(PUBLISHED, torch.device("cpu"), dtype, config.data.normalisation)
        self.step = VolumeStep(config, group, self.state.main, normaliser)
        self.batch = made_up_patches(config)

    def __call__(self) -> dict[str, torch.Tensor]:
        return self.step.update(self.batch, 0, 1e-3)

    def gradients(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(terms, gradients by parameter) of one update that changes no weight."""
        kept: dict[str, Any] = {}

        def clip_and_step(max_norm: float, rate: float) -> torch.Tensor:
            kept.update({n: p.grad for n, p in self.state.main.module.named_parameters()})
            return torch.zeros(())

        self.state.main.clip_and_step = clip_and_step  # type: ignore[method-assign]
        return self(), kept


def volume_shards(folder: Path) -> Path:
    """Phantoms of 48 x 48 x 40 voxels as chunks; their stage-1 volumes are the real ones, each voxel times 2."""
    cases = find_cases(small_cases(folder / "cases", 4) / "train_gli")
    (folder / "stage1").mkdir()
    for case in cases:
        for modality in MODALITIES:
            image = nibabel.load(case.files[modality])
            doubled = nibabel.Nifti1Image(2 * np.asarray(image.dataobj), image.affine)
            nibabel.save(doubled, folder / "stage1" / f"{case.name}-{modality}.nii.gz")
    options = ShardOptions(views=(), chunks=16, stage1=folder / "stage1", validation_fraction=0.34)
    make_shards([folder / "cases/train_gli"], folder / "shards", options)
    return folder / "shards"
