"""Synthesis of one case: the volume pipeline (docs/explanation/method.md, section 7).

No state is kept between calls.

    integers (M, x, y, z) --slice, pad, normalise--> batches --generator--> slices --crop, denormalise-->
            |
            +--> brain mask

    --> volume (x, y, z) of each member --zero outside the brain mask, fuse--> volume (x, y, z)

A voxel is background, and the result 0, if at least two of the available modalities are 0 there. Slices that
are background everywhere are therefore not run: the result is exactly the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from brasyn_dist.brats import BRATS, VIEW_AXES, VIEWS, ImageSize, image_shape
from brasyn_dist.errors import CheckpointError, DataError
from brasyn_dist.inference.sliding_window import brain_box, slide
from brasyn_dist.modality_set import ModalitySet
from brasyn_dist.models.registry import Generator
from brasyn_dist.models.volume_network import VolumeNetwork
from brasyn_dist.preprocessing.normalisation import foreground_medians
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.slicing import margins

Precision = Literal["no", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

BACKGROUND_VOTES = 2
"""Number of available modalities that must be background (or all, if fewer are available) to make a voxel
background."""
WHOLE = "volume"
"""In place of a view: the network runs over the whole volume."""
STAGES = ("read", "prepare", "network", "finish", "write")


@dataclass(frozen=True)
class SynthesisOptions:
    """How networks run; beside `mirror`, the result does not depend on it, up to rounding."""

    batch_size: int | None = None
    """Slices in a batch; None: `default_batch_size`. Windows of volumes run one by one."""
    precision: Precision = "no"
    """Autocast type."""
    mirror: bool = False
    """Average with the result of mirrored inputs, for twice the time."""


PLAIN = SynthesisOptions()
Fuse = Callable[[Tensor, str], Tensor]
"""(volumes (V, x, y, z) of the members, target) -> volume (x, y, z), in the units of the inputs."""


@dataclass(frozen=True, eq=False)
class Member:
    """A model and the view that it runs over.

    The volumes of all members are fused, by default by their mean.
    """

    view: str
    """WHOLE for networks of volumes."""
    generator: Generator | VolumeNetwork
    """In evaluation mode, on its device, with the statistics that it was trained with."""
    folder: Path
    weights_sha256: str

    @property
    def preprocessing(self) -> Preprocessing:
        """How the model was trained to read slices."""
        assert self.generator.preprocessing is not None
        return self.generator.preprocessing

    @property
    def modality_set(self) -> ModalitySet:
        """Modalities and labels of the model."""
        return self.preprocessing.modality_set


class StageTimer:
    """Seconds by stage.

    `with timer("network"): ...`. Stages of one case may run in different threads, one after another.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to the stage."""
        begun = time.perf_counter()
        try:
            yield
            # GPU calls return before their work is done: without waiting, its time would be counted for a
            # later stage.
            if self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


def default_batch_size(device: torch.device) -> int:
    """Default number of slices in a batch.

    The thesis used 31 axial or 40 other slices; the result does not depend on it.

    Every batch is filled up, so that larger batches waste more in the last one. On CPUs they are also slower
    for each slice (benchmarks/bench_infer.py).
    """
    return 4 if device.type == "cpu" else 16


def synthesise_case(
    members: Sequence[Member],
    images_MXYZ: np.ndarray,
    available: Sequence[str],
    targets: Sequence[str],
    options: SynthesisOptions = PLAIN,
    *,
    fuse: Fuse | None = None,
    refiner: Member | None = None,
    timer: StageTimer | None = None,
) -> dict[str, np.ndarray]:
    """Synthesise the target modalities of one case.

    Args:
        members: Models and views; all of one modality set.
        images_MXYZ: Integers with all M modalities, (x, y, z) in LPS order. Modalities that are not available
            are not read.
        available: Names of the input modalities.
        targets: Names of the modalities to make.
        options: How the networks run.
        fuse: Fusion of the members' volumes; default: the mean. Background is 0 and values are at least 0 in
            any case.
        refiner: Second stage, which refines the fused and rounded volume.
        timer: Adds up the seconds by stage.

    Returns:
        For each target, an int32 volume (x, y, z) in the units of the inputs: fused over members, rounded.

    Raises:
        DataError: There is no brain, or the output of the network is not finite.
    """
    device = next(members[0].generator.parameters()).device
    present = members[0].modality_set.indices(available)
    timer = timer or StageTimer(device)
    with timer("prepare"):
        images = torch.from_numpy(images_MXYZ).to(device)
        brain_XYZ = brain_mask(images, present)
        if not brain_XYZ.any():
            raise DataError(f"no brain: {', '.join(available)} are background everywhere (all voxels are 0)")
    volumes = {}
    for target in targets:
        views_VXYZ = member_volumes(members, images, available, target, options, timer)
        with timer("finish"):
            fused_XYZ = fuse(views_VXYZ, target) if fuse else mean_of_members(views_VXYZ)
            volumes[target] = to_integers(torch.where(brain_XYZ, fused_XYZ.clamp(min=0), 0.0), target)
        if refiner is not None:
            # Trained on rounded volumes, too: those that the first stage wrote.
            stage1_XYZ = torch.from_numpy(volumes[target]).to(device)
            assert isinstance(refiner.generator, VolumeNetwork)
            refined_XYZ = synthesise_patches(
                refiner.generator, images, available, target, stage1_XYZ, options, timer
            )
            volumes[target] = to_integers(refined_XYZ, target)
    return volumes


def member_volumes(
    members: Sequence[Member],
    images_MXYZ: Tensor,
    available: Sequence[str],
    target: str,
    options: SynthesisOptions = PLAIN,
    timer: StageTimer | None = None,
) -> Tensor:
    """(V, x, y, z) float32: the target modality by each member, with its model and view."""
    volumes = []
    for member in members:
        network = member.generator
        if isinstance(network, VolumeNetwork):
            made_XYZ = synthesise_patches(network, images_MXYZ, available, target, None, options, timer)
        else:
            made_XYZ = synthesise_volume(network, images_MXYZ, available, target, member.view, options, timer)
        volumes.append(made_XYZ)
    return torch.stack(volumes)


def mean_of_members(volumes_VXYZ: Tensor) -> Tensor:
    """The mean, summed member by member (docs/explanation/method.md, section 7)."""
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
    options: SynthesisOptions = PLAIN,
    timer: StageTimer | None = None,
) -> Tensor:
    """Modality `target` as a float32 volume (x, y, z) in the units of the inputs, from slices of one view.

    `images_MXYZ` are integers with all modalities, on the generator's device. Only the encoders of the
    `available` modalities run.
    """
    preprocessing = preprocessing_of(generator)
    device, modality_set = images_MXYZ.device, preprocessing.modality_set
    timer = timer or StageTimer(device)
    present, wanted = modality_set.indices(available), modality_set.index(target)
    with timer("prepare"):
        normaliser = preprocessing.normaliser(device)
        medians_1M, unit = case_scales(preprocessing, images_MXYZ, present, wanted)
        brain_XYZ = brain_mask(images_MXYZ, present)
        volume_XYZ = torch.zeros(brain_XYZ.shape, device=device)
        # Views into the volumes: writing to a slice writes to its volume.
        inputs_KMHW, outputs_KHW = to_slices(images_MXYZ, view), to_slices(volume_XYZ, view)
        padding = padding_to(outputs_KHW.shape[1:], generator.config.image_size)
        check_window(to_slices(brain_XYZ, view), padding, view)
        slices_K = to_slices(brain_XYZ, view).flatten(1).any(1).nonzero()[:, 0]
        offsets_N = [d for d in range(-generator.context, generator.context + 1) if d]
    for slices_B in full_batches(slices_K, options.batch_size or default_batch_size(device)):
        with timer("prepare"):
            planes_BMHW = F.pad(inputs_KMHW[slices_B], padding)
            x_BMHW = normaliser(planes_BMHW, medians_BM=medians_1M)
            context_BNMHW = None
            if offsets_N:
                near_BN = (slices_B[:, None] + torch.tensor(offsets_N, device=device)).clamp(
                    slices_K[0], slices_K[-1]
                )
                context_BNMHW = normaliser.neighbours(F.pad(inputs_KMHW[near_BN], padding), None, medians_1M)
        with timer("network"), autocast(device, options.precision):
            image_B1HW = synthesise_slices(
                generator, x_BMHW, context_BNMHW, present, wanted, view, options.mirror
            )
        with timer("finish"):
            cropped_BHW = F.pad(image_B1HW[:, 0].float(), [-n for n in padding])
            outputs_KHW[slices_B] = unit * normaliser.denormalise(cropped_BHW, wanted, planes_BMHW, present)
    with timer("finish"):
        return torch.where(brain_XYZ, volume_XYZ, 0.0)


@torch.inference_mode()
def synthesise_patches(
    network: VolumeNetwork,
    images_MXYZ: Tensor,
    available: Sequence[str],
    target: str,
    stage1_XYZ: Tensor | None = None,
    options: SynthesisOptions = PLAIN,
    timer: StageTimer | None = None,
) -> Tensor:
    """Modality `target` as a float32 volume (x, y, z) in the units of the inputs, by a network of volumes.

    `images_MXYZ` are integers with all modalities, on the network's device. `stage1_XYZ` is the volume of the
    first stage, for a refiner: integers in any unit with normalisation `case`.
    """
    preprocessing = preprocessing_of(network)
    modality_set, device = preprocessing.modality_set, images_MXYZ.device
    timer = timer or StageTimer(device)
    present, wanted = modality_set.indices(available), modality_set.index(target)
    with timer("prepare"):
        normaliser = preprocessing.normaliser(device)
        medians_1M, unit = case_scales(preprocessing, images_MXYZ, present, wanted)
        brain_XYZ = brain_mask(images_MXYZ, present)
        box = brain_box(brain_XYZ)
        x_1MXYZ = normaliser.volumes(images_MXYZ[(None, slice(None), *box)], medians_BM=medians_1M)
        stage1_11XYZ = None
        if stage1_XYZ is not None:
            planes_MXYZ = torch.zeros_like(images_MXYZ, dtype=stage1_XYZ.dtype)
            planes_MXYZ[wanted] = stage1_XYZ
            own_1M = foreground_medians(planes_MXYZ, [wanted])
            normalised = normaliser.volumes(planes_MXYZ[(None, slice(None), *box)], medians_BM=own_1M)
            stage1_11XYZ = normalised[:, wanted : wanted + 1]
    with timer("network"), autocast(device, options.precision):
        made = slide(network, x_1MXYZ, present, wanted, stage1_11XYZ)
        if options.mirror:
            flipped = None if stage1_11XYZ is None else stage1_11XYZ.flip(2)
            made = (made + slide(network, x_1MXYZ.flip(2), present, wanted, flipped).flip(2)) / 2
    with timer("finish"):
        volume_XYZ = torch.zeros(brain_XYZ.shape, device=device)
        volume_XYZ[box] = unit * normaliser.denormalise(made[0, 0], wanted)
        return torch.where(brain_XYZ, volume_XYZ, 0.0)


def preprocessing_of(network: Generator | VolumeNetwork) -> Preprocessing:
    """The preprocessing that the network was trained with."""
    if network.preprocessing is None:
        raise CheckpointError(
            "the generator has no statistics to normalise with; load it with from_pretrained"
        )
    return network.preprocessing


def synthesise_slices(
    generator: Generator,
    x_BMHW: Tensor,
    context_BNMHW: Tensor | None,
    present: tuple[int, ...],
    wanted: int,
    view: str,
    mirror: bool,
) -> Tensor:
    """(B, 1, H, W); with `mirror` the mean with the result of slices whose left and right are exchanged.

    Sagittal slices have no left and right: they are not mirrored.
    """
    number = VIEWS.index(view)
    image_B1HW = generator.synthesise(x_BMHW, present, wanted, number, context_BNMHW)
    if not mirror or view == "sagittal":
        return image_B1HW
    context = None if context_BNMHW is None else context_BNMHW.flip(-2)
    mirrored_B1HW = generator.synthesise(x_BMHW.flip(-2), present, wanted, number, context)
    return (image_B1HW.float() + mirrored_B1HW.float().flip(-2)) / 2


def case_scales(
    preprocessing: Preprocessing, images_MXYZ: Tensor, present: Sequence[int], wanted: int
) -> tuple[Tensor | None, float]:
    """Medians (1, M) that normalise the inputs, and the unit of the output.

    (None, 1) without normalisation by case.
    """
    if preprocessing.normalisation != "case":
        return None, 1.0
    if preprocessing.intensity_scale is None:
        raise CheckpointError("the generator has no scales to denormalise with; load it with from_pretrained")
    medians_1M = foreground_medians(images_MXYZ, present)
    medians = medians_1M[0, list(present)].tolist()
    return medians_1M, preprocessing.intensity_scale.predict(present, medians, wanted)


def brain_mask(images_MXYZ: Tensor, present: Sequence[int]) -> Tensor:
    """Foreground of the inputs, (x, y, z) bool.

    False where at least two of the modalities `present` (or the only one) are background.
    """
    # Volume by volume: gathering the planes and reducing over them takes ten times as long on CPUs.
    votes_XYZ = torch.zeros_like(images_MXYZ[0], dtype=torch.int8)
    for modality in present:
        votes_XYZ += images_MXYZ[modality] <= 0
    return votes_XYZ < min(BACKGROUND_VOTES, len(present))


def to_slices(volumes: Tensor, view: str) -> Tensor:
    """(..., x, y, z) to (slices, ..., H, W) without a copy, as preprocessing.slicing.extract_slices."""
    return volumes.movedim(VIEW_AXES[view] - 3, 0)


def padding_to(shape_HW: Sequence[int], size: ImageSize) -> list[int]:
    """Argument of `F.pad` that centres slices in the network's window; its negative reverts that."""
    (height, width), (rows, columns) = shape_HW, image_shape(size)
    return [*margins(width, columns), *margins(height, rows)]


def check_window(brain_KHW: Tensor, padding: Sequence[int], view: str) -> None:
    """Raise DataError if cropping to the network's window removes brain."""
    if min(padding) < 0:
        seen_KHW = F.pad(F.pad(brain_KHW, list(padding)), [-n for n in padding])
        lost = int(brain_KHW.count_nonzero() - seen_KHW.count_nonzero())
        if lost:
            height, width = (n + sum(p) for n, p in zip(brain_KHW.shape[1:], (padding[2:], padding[:2])))
            raise DataError(
                f"{lost} voxels of the brain lie outside the {height} x {width} pixels of {view} slices that "
                "this model sees; use one with a larger generator.image_size, or move the brain to the "
                "middle of its volume"
            )


def full_batches(slices_K: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Slice numbers in batches of exactly `batch_size`, the last one filled up by repeating the last number.

    The choice of kernels depends on the shape, and their results differ in the last bits. With batches of one
    shape, the result of a slice depends on the slice only.
    """
    missing = -len(slices_K) % batch_size
    yield from torch.cat([slices_K, slices_K[-1:].expand(missing)]).split(batch_size) if len(slices_K) else ()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """Autocast to the type of `precision`; no change for `no`."""
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def to_integers(volume_XYZ: Tensor, target: str) -> np.ndarray:
    """Rounded, as int32 on the host. Raises DataError if there is a NaN or infinity."""
    if not torch.isfinite(volume_XYZ).all():
        raise DataError(
            f"{target}: the network's output is not finite; use precision `no`, or check the weights"
        )
    return volume_XYZ.round().to(torch.int32).cpu().numpy()


def stack_modalities(
    names: Sequence[str], images_NXYZ: np.ndarray, modality_set: ModalitySet = BRATS
) -> np.ndarray:
    """(M, x, y, z) with all modalities in channel order, 0 in those that are not among the given ones."""
    planes = np.zeros((len(modality_set), *images_NXYZ.shape[1:]), images_NXYZ.dtype)
    planes[[modality_set.index(name) for name in names]] = images_NXYZ
    return planes
