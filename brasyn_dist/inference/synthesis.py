"""One case's volumes in, the missing ones out: the volume pipeline (method, section 7). Nothing is remembered between calls.

    integers (4, x, y, z) --slice, pad, normalise--> batches --generator--> slices --crop, denormalise, stack--> volume (x, y, z)
                     \\--> where is brain? --------------------------------------- zero outside it ------------> fused over members

Where at least two of the available modalities call a voxel background, the result is 0. So a slice in which that holds
everywhere need not be run: leaving it out is exact.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brasyn_dist.brats import MODALITIES, VIEW_AXES, VIEWS, ImageSize, image_shape
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference.timing import StageClock
from brasyn_dist.models.generator import Generator
from brasyn_dist.preprocessing.normalisation import foreground_medians
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.slicing import margins

Precision = Literal["no", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

BACKGROUND_VOTES = 2
"""So many available modalities must call a voxel background for it to be background (or all, if fewer are available)."""


Fuse = Callable[[Tensor, Tensor, Sequence[str], str], Tensor]
"""(volumes (V, x, y, z) of the members, images (4, x, y, z), available, target) -> volume (x, y, z), in the inputs' units."""


@dataclass(frozen=True, eq=False)
class Member:
    """A model and the view that it runs over. What is synthesised is fused over members, by default their mean."""

    view: str
    generator: Generator
    """In evaluation mode, on its device, with the statistics that it was trained with."""
    folder: Path
    weights_sha256: str

    @property
    def preprocessing(self) -> Preprocessing:
        assert self.generator.preprocessing is not None
        return self.generator.preprocessing


def default_batch_size(device: torch.device) -> int:
    """Slices generated at a time. The thesis ran 31 axial or 40 other ones; the result does not depend on it.

    Every batch is filled up, so larger ones waste more on the last; on a CPU they are slower a slice, too (benchmarks).
    """
    return 4 if device.type == "cpu" else 16


def synthesise_case(
    members: Sequence[Member],
    images_MXYZ: np.ndarray,
    available: Sequence[str],
    targets: Sequence[str],
    *,
    fuse: Fuse | None = None,
    batch_size: int | None = None,
    precision: Precision = "no",
    clock: StageClock | None = None,
) -> dict[str, np.ndarray]:
    """Each target modality as an int32 volume (x, y, z), in the units of the inputs: fused over members, rounded.

    `images_MXYZ` has all four modalities (x, y, z in LPS order); planes that are not `available` are not looked at.
    `fuse` defaults to the mean. Whatever fuses, background is 0 and nothing is negative.
    Raises DataError where there is no brain, or where the network's output is not finite.
    """
    device = next(members[0].generator.parameters()).device
    clock = clock or StageClock(device)
    with clock("prepare"):
        images = torch.from_numpy(images_MXYZ).to(device)
        brain_XYZ = brain_mask(images, available)
        if not brain_XYZ.any():
            raise DataError(f"no brain: {', '.join(available)} are background everywhere (all voxels are 0)")
    volumes = {}
    for target in targets:
        views_VXYZ = member_volumes(
            members, images, available, target, batch_size=batch_size, precision=precision, clock=clock
        )
        with clock("finish"):
            fused_XYZ = (fuse or mean_of_members)(views_VXYZ, images, available, target)
            volumes[target] = to_integers(torch.where(brain_XYZ, fused_XYZ.clamp(min=0), 0.0), target)
    return volumes


def member_volumes(
    members: Sequence[Member],
    images_MXYZ: Tensor,
    available: Sequence[str],
    target: str,
    *,
    batch_size: int | None = None,
    precision: Precision = "no",
    clock: StageClock | None = None,
) -> Tensor:
    """(V, x, y, z) float32: what each member makes of the target modality, each with its own model and view."""
    volumes = [
        synthesise_volume(
            member.generator,
            images_MXYZ,
            available,
            target,
            member.view,
            batch_size=batch_size,
            precision=precision,
            clock=clock,
        )
        for member in members
    ]
    return torch.stack(volumes)


def mean_of_members(
    volumes_VXYZ: Tensor, images_MXYZ: Tensor, available: Sequence[str], target: str
) -> Tensor:
    """The mean, added up member by member: what the thesis does with views (method, section 7)."""
    total_XYZ = torch.zeros_like(volumes_VXYZ[0])
    for volume_XYZ in volumes_VXYZ:
        total_XYZ += volume_XYZ
    return total_XYZ / len(volumes_VXYZ)


@torch.inference_mode()
def synthesise_volume(
    generator: Generator,
    images_MXYZ: Tensor,
    available: Sequence[str],
    target: str,
    view: str,
    *,
    batch_size: int | None = None,
    precision: Precision = "no",
    clock: StageClock | None = None,
) -> Tensor:
    """Modality `target` as a float32 volume (x, y, z) in the units of the inputs, from slices of one view.

    `images_MXYZ` integers with all four modalities, on the generator's device. The modalities named in `available` are the
    input, and only their encoders run.
    """
    preprocessing = generator.preprocessing
    if preprocessing is None:
        raise CheckpointError(
            "the generator has no statistics to normalise with; load it with from_pretrained"
        )
    device = images_MXYZ.device
    clock = clock or StageClock(device)
    present = modality_numbers(available)
    wanted, view_number = MODALITIES.index(target), VIEWS.index(view)
    with clock("prepare"):
        normaliser = preprocessing.normaliser(device)
        medians_1M, unit = case_scales(preprocessing, images_MXYZ, present, wanted)
        brain_XYZ = brain_mask(images_MXYZ, available)
        volume_XYZ = torch.zeros(brain_XYZ.shape, device=device)
        # Views into the volumes: what is written to a slice is written to its volume.
        inputs_KMHW, outputs_KHW = to_slices(images_MXYZ, view), to_slices(volume_XYZ, view)
        padding = padding_to(outputs_KHW.shape[1:], generator.config.image_size)
        check_window(to_slices(brain_XYZ, view), padding, view)
        rows_K = to_slices(brain_XYZ, view).flatten(1).any(1).nonzero()[:, 0]
    for rows_B in full_batches(rows_K, batch_size or default_batch_size(device)):
        with clock("prepare"):
            planes_BMHW = F.pad(inputs_KMHW[rows_B], padding)
            x_BMHW = normaliser(planes_BMHW, medians_BM=medians_1M)
        with clock("network"), autocast(device, precision):
            image_B1HW = generator.synthesise(x_BMHW, present, wanted, view_number)
        with clock("finish"):
            cropped_BHW = F.pad(image_B1HW[:, 0].float(), [-n for n in padding])
            outputs_KHW[rows_B] = unit * normaliser.denormalise(cropped_BHW, wanted, planes_BMHW, present)
    with clock("finish"):
        return torch.where(brain_XYZ, volume_XYZ, 0.0)


def case_scales(
    preprocessing: Preprocessing, images_MXYZ: Tensor, present: Sequence[int], wanted: int
) -> tuple[Tensor | None, float]:
    """Medians (1, 4) that normalise the inputs, and the unit of the output; (None, 1) where intensities have no case's scale."""
    if preprocessing.normalisation != "case":
        return None, 1.0
    if preprocessing.intensity_scale is None:
        raise CheckpointError("the generator has no scales to denormalise with; load it with from_pretrained")
    medians_1M = foreground_medians(images_MXYZ, present)
    return medians_1M, preprocessing.intensity_scale.predict(
        present, medians_1M[0, list(present)].tolist(), wanted
    )


def brain_mask(images_MXYZ: Tensor, available: Sequence[str]) -> Tensor:
    """(x, y, z) bool: False where at least two of the available modalities (the one, if it is alone) are background."""
    # Volume by volume: gathering the planes and reducing over them takes ten times as long on CPUs.
    votes_XYZ = torch.zeros_like(images_MXYZ[0], dtype=torch.int8)
    for modality in modality_numbers(available):
        votes_XYZ += images_MXYZ[modality] <= 0
    return votes_XYZ < min(BACKGROUND_VOTES, len(available))


def modality_numbers(names: Sequence[str]) -> tuple[int, ...]:
    return tuple(m for m, name in enumerate(MODALITIES) if name in names)


def to_slices(volumes: Tensor, view: str) -> Tensor:
    """(..., x, y, z) to (slices, ..., H, W), a view: preprocessing/slicing.py's `extract_slices` for tensors."""
    return volumes.movedim(VIEW_AXES[view] - 3, 0)


def padding_to(shape_HW: Sequence[int], size: ImageSize) -> list[int]:
    """`torch.nn.functional.pad`'s list for centring slices in what the network sees; its negative undoes that."""
    (height, width), (rows, columns) = shape_HW, image_shape(size)
    return [*margins(width, columns), *margins(height, rows)]


def check_window(brain_KHW: Tensor, padding: Sequence[int], view: str) -> None:
    """Raise DataError if padding cuts off brain: the model would not see it, and leave a hole."""
    if min(padding) < 0:
        seen_KHW = F.pad(F.pad(brain_KHW, list(padding)), [-n for n in padding])
        lost = int(brain_KHW.count_nonzero() - seen_KHW.count_nonzero())
        if lost:
            height, width = (n + sum(p) for n, p in zip(brain_KHW.shape[1:], (padding[2:], padding[:2])))
            raise DataError(
                f"{lost} voxels of the brain lie outside the {height} x {width} pixels of {view} slices that this model sees; "
                "use one with a larger generator.image_size, or move the brain to the middle of its volume"
            )


def full_batches(rows_K: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Slice numbers in batches of exactly `batch_size`, the last one filled up by repeating the last number.

    Kernels are chosen by shape, and differ in their last bits: in batches of one shape, a slice's result depends on
    nothing but the slice.
    """
    missing = -len(rows_K) % batch_size
    yield from torch.cat([rows_K, rows_K[-1:].expand(missing)]).split(batch_size) if len(rows_K) else ()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def to_integers(volume_XYZ: Tensor, target: str) -> np.ndarray:
    """Rounded, as int32 on the host. Raises DataError if there is a NaN or infinity."""
    if not torch.isfinite(volume_XYZ).all():
        raise DataError(
            f"{target}: the network's output is not finite; use precision `no`, or check the weights"
        )
    return volume_XYZ.round().to(torch.int32).cpu().numpy()


def four_planes(modalities: Sequence[str], images_MXYZ: np.ndarray) -> np.ndarray:
    """(4, x, y, z) in modality order, 0 in modalities that are not among those given."""
    planes = np.zeros((len(MODALITIES), *images_MXYZ.shape[1:]), images_MXYZ.dtype)
    planes[list(modality_numbers(modalities))] = images_MXYZ
    return planes
