"""Runs one update of a GAN (with a frozen segmenter) and one of a segmenter, in float64, as one of several ranks, with plain
gradient descent, and saves all weights after it.

torchrun ... -m tests.distributed.split_worker MICRO UPDATES_PER_BATCH OUT.safetensors [SHARE ...]
"""

import dataclasses
import sys

import torch
from safetensors.torch import save_file

from brasyn_dist.common.processes import run_and_leave
from brasyn_dist.config import AdamConfig, LengthConfig, SegmenterConfig, SegmenterRunConfig, load_config
from brasyn_dist.data.loading.loader import SliceBatch
from brasyn_dist.data.loading.sampler import rank_rows, targets_and_masks
from brasyn_dist.distributed.process_group import Distributed
from brasyn_dist.models.cycle_synthesis import CycleSynthesis
from brasyn_dist.models.discriminator import build_discriminator
from brasyn_dist.models.registry import build_generator
from brasyn_dist.models.segmenter import Guidance, build_segmenter
from brasyn_dist.preprocessing.normalisation import Normaliser
from brasyn_dist.preprocessing.statistics import PUBLISHED
from brasyn_dist.training.gan_step import GanStep
from brasyn_dist.training.segmenter_task import SegmenterStep
from brasyn_dist.training.training_data import DeviceBatch

SIZE, BATCH = 32, 8


def global_batch() -> SliceBatch:
    """Brains of different sizes; every other slice has tumour, one has no labels at all."""
    noise = torch.Generator().manual_seed(0)
    planes = torch.randint(1, 4000, (BATCH, 4, SIZE, SIZE), generator=noise, dtype=torch.int16)
    labels = torch.zeros(BATCH, SIZE, SIZE, dtype=torch.uint8)
    for b in range(BATCH):
        planes[b, :, : 3 + b] = 0
        labels[b, 14 : 18 + b, 8:20] = 3 * (b % 2)
    return SliceBatch(
        index=0,
        planes=planes,
        labels=labels,
        has_labels=torch.arange(BATCH) != 3,
        view=torch.zeros(BATCH, dtype=torch.int64),
        tumour_type=torch.zeros(BATCH, dtype=torch.int64),
        medians=torch.ones(BATCH, 4),
        keys=[str(b) for b in range(BATCH)],
        context=planes[:, None][:, :0],
        rows=slice(0, BATCH),
    )


def part_of(rows: slice) -> SliceBatch:
    batch = global_batch()
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    cut = {k: v[rows] for k, v in values.items() if k not in ("index", "rows")}
    return SliceBatch(index=0, rows=rows, **cut)


def main(arguments: list[str]) -> int:
    micro, updates, out = int(arguments[0]), int(arguments[1]), arguments[2]
    shares = [float(share) for share in arguments[3:]]
    config = load_config(
        None,
        [
            f"generator.image_size={SIZE}", f"discriminator.image_size={SIZE}", "generator.base_channels=8",
            "generator.heads=2", "generator.transformer_layers=1", "discriminator.base_channels=8",
            f"training.global_batch_size={BATCH}", f"training.micro_batch_size={micro}",
            f"training.updates_per_batch={updates}", "optimizer.clip_norm=0", "optimizer.discriminator_ratio=1", "runtime.threads=1",
            "objective.tversky=5", "objective.segmenter=built-below",
        ],
    )  # fmt: skip
    segmenter_config = SegmenterRunConfig(
        segmenter=SegmenterConfig(SIZE, (8, 16, 24)),
        training=LengthConfig(global_batch_size=BATCH, micro_batch_size=micro),
        optimizer=AdamConfig(clip_norm=0),
    )
    distributed = Distributed(config.runtime)
    generator = build_generator(config.generator, 0).double()
    discriminator = build_discriminator(config.discriminator, 0).double()
    networks = [
        distributed.prepare(module, torch.optim.SGD(state.parameters(), lr=1.0), state)
        for module, state in ((CycleSynthesis(generator), generator), (discriminator, discriminator))
    ]
    normaliser = Normaliser(PUBLISHED, distributed.device, torch.float64)
    frozen = build_segmenter(segmenter_config.segmenter, 1).double().requires_grad_(False)
    guidance = Guidance(frozen, logits=True, features=False)
    step = GanStep(config, distributed, networks[0], networks[1], normaliser, guidance)
    whole = DeviceBatch.load(global_batch(), normaliser)
    rows = rank_rows(BATCH, distributed.rank, distributed.world, shares)
    masks = [targets_and_masks(5, 0, u, BATCH, "any")[rows] for u in range(4 // updates)]
    step(whole.rows(rows.start, rows.stop), masks, 1.0)
    segmenter = build_segmenter(segmenter_config.segmenter, 0).double()
    trainable = distributed.prepare(segmenter, torch.optim.SGD(segmenter.parameters(), lr=1.0), segmenter)
    SegmenterStep(segmenter_config, distributed, trainable, normaliser).update(part_of(rows), 0, 1.0)
    if distributed.is_main:
        states = {
            "generator": generator.state_dict(),
            "discriminator": discriminator.state_dict(),
            "segmenter": segmenter.state_dict(),
        }
        save_file({f"{n}.{k}": v for n, s in states.items() for k, v in s.items()}, out)
    distributed.close()
    return 0


if __name__ == "__main__":
    run_and_leave(lambda: main(sys.argv[1:]))
