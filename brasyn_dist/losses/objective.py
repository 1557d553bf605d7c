"""The objective (docs/explanation/method.md, section 5): every term has one value per sample.

    GeneratorOutputs        --generator_terms-->     {name: (B,)} --weighted_sum-->               (B,)
    discriminator's logits  --discriminator_terms--> {name: (B,)} --weighted_discriminator_sum--> (B,)

Denominators depend only on the sample. The caller sums and divides by the global batch size, so the gradient
of a global batch does not depend on how it is split over ranks and micro-batches. Everything is computed in
at least float32 for any autocast, and is finite for slices without tumour, for almost empty and for constant
slices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.config import ObjectiveConfig, TverskyConfig
from brasyn_dist.losses.ssim import at_least_float32, region_mean, ssim_map
from brasyn_dist.losses.tversky import focal_tversky, labelled_only
from brasyn_dist.preprocessing.normalisation import foreground

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class GeneratorOutputs:
    """Outputs of one generator update for B samples, and what they are compared with.

    Volumes have the axes (X, Y, Z) in place of (H, W); only reconstruction and SSIM terms take them.
    A field may be None if the weights of all terms that use it are 0.
    """

    image_B1HW: Tensor
    """Synthetic slices, normalised."""
    real_B1HW: Tensor
    """Real slices of the same modality."""
    target_B: Tensor
    """Number of the target modality, int64."""
    bottleneck_BCHW: Tensor | None
    range_B: Tensor
    """Data range of the target modality (Normaliser.range_M)."""
    tumour_B1HW: Tensor
    """Pixels of the tumour. A slice without labels counts as healthy."""
    ssim_offset: float = 0.0
    """Added to the brain of both images before SSIM (Normaliser.ssim_offset)."""
    healthy_B1HW: Tensor | None = None
    """Pixels without a label; None: all that are not tumour. A resection cavity is in neither."""
    cycle_image_B1HW: Tensor | None = None
    cycle_real_B1HW: Tensor | None = None
    cycle_bottleneck_BCHW: Tensor | None = None
    patch_B1hw: Tensor | None = None
    """Patch logits of the discriminator for `image`."""
    class_BM: Tensor | None = None
    """Modality logits of the discriminator for `image`."""
    segmented_BCHW: Tensor | None = None
    """Logits of the frozen segmenter for all modalities' slices with the synthetic one in its place."""
    segmenter_features: Sequence[Tensor] = ()
    """Encoder features (B, C_i, h_i, w_i) of the frozen segmenter for the completed slices."""
    real_segmenter_features: Sequence[Tensor] = ()
    """The same for the real slices."""
    head_BCHW: Tensor | None = None
    """Logits of the generator's segmentation head."""
    labels_BHW: Tensor | None = None
    has_labels_B: Tensor | None = None

    def required(self, name: str) -> Tensor:
        """The field `name`. Raises ValueError if it is None."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} is needed: the weight of a term that uses it is not 0")
        return value


def generator_terms(
    config: ObjectiveConfig, outputs: GeneratorOutputs, tversky: TverskyConfig | None = None
) -> Terms:
    """Unweighted terms (B,) of each sample, by name. Terms with weight 0 are left out.

    Raises:
        ValueError: An output that a term needs is None.
    """
    terms: Terms = {}
    image_B1HW, real_B1HW = outputs.image_B1HW, outputs.real_B1HW
    if config.reconstruction:
        terms["reconstruction"] = absolute_error(
            image_B1HW, real_B1HW, config.mask_background, config.smooth_l1
        )
    if config.adversarial:
        terms["adversarial"] = patch_loss(outputs.required("patch_B1hw"), real=True)
    if config.classification:
        terms["classification"] = class_loss(outputs.required("class_BM"), outputs.target_B)
    if config.feature:
        terms["feature"] = feature_distance(
            outputs.required("bottleneck_BCHW"), outputs.required("cycle_bottleneck_BCHW")
        )
    if config.cycle:
        terms["cycle"] = absolute_error(
            outputs.required("cycle_image_B1HW"), outputs.required("cycle_real_B1HW"), config.mask_background
        )
    if config.ssim:
        terms |= ssim_terms(
            config.ssim_regions,
            image_B1HW,
            real_B1HW,
            outputs.tumour_B1HW,
            ~outputs.tumour_B1HW if outputs.healthy_B1HW is None else outputs.healthy_B1HW,
            outputs.range_B,
            outputs.ssim_offset,
        )
    if config.tversky:
        terms["tversky"] = segmentation_loss(outputs, "segmented_BCHW", tversky)
    if config.segmenter_features:
        terms["segmenter_features"] = feature_matching(
            outputs.segmenter_features, outputs.real_segmenter_features, foreground(real_B1HW)
        )
    if config.auxiliary_segmentation:
        terms["auxiliary_segmentation"] = segmentation_loss(outputs, "head_BCHW", tversky)
    return terms


class Objective(nn.Module):
    """Terms and loss of the generator as one module, so that torch.compile can fuse their many small maps."""

    def __init__(self, config: ObjectiveConfig, tversky: TverskyConfig) -> None:
        super().__init__()
        self._config, self._tversky = config, tversky

    def forward(self, outputs: GeneratorOutputs) -> tuple[Terms, Tensor]:
        """Terms of `generator_terms`, and their weighted sum (B,)."""
        terms = generator_terms(self._config, outputs, self._tversky)
        return terms, weighted_sum(self._config, terms)


def weighted_sum(config: ObjectiveConfig, terms: Mapping[str, Tensor]) -> Tensor:
    """Loss (B,) of the generator. Both SSIM regions have the full SSIM weight."""
    return sum_of(
        getattr(config, "ssim" if name.startswith("ssim_") else name) * value for name, value in terms.items()
    )


def discriminator_terms(
    real_patch_B1hw: Tensor,
    real_class_BM: Tensor,
    synthetic_patch_B1hw: Tensor,
    synthetic_class_BM: Tensor,
    target_B: Tensor,
) -> Terms:
    """Cross-entropies of the discriminator's heads on real and synthetic slices of the same modality."""
    return {
        "discriminator_real": patch_loss(real_patch_B1hw, real=True),
        "discriminator_synthetic": patch_loss(synthetic_patch_B1hw, real=False),
        "discriminator_real_class": class_loss(real_class_BM, target_B),
        "discriminator_synthetic_class": class_loss(synthetic_class_BM, target_B),
    }


def weighted_discriminator_sum(config: ObjectiveConfig, terms: Mapping[str, Tensor]) -> Tensor:
    """Loss (B,) of the discriminator."""
    return config.discriminator * sum_of(terms.values())


def absolute_error(image_B1HW: Tensor, real_B1HW: Tensor, foreground_only: bool, beta: float = 0.0) -> Tensor:
    """(B,) mean absolute error over all pixels, or over the brain in the real slice (0 without brain).

    With `beta` above 0 smooth L1: errors e below it count as e^2 / (2 beta), others as e - beta / 2.
    """
    error_B1HW = (at_least_float32(image_B1HW) - at_least_float32(real_B1HW)).abs()
    if beta:
        error_B1HW = torch.where(error_B1HW < beta, error_B1HW**2 / (2 * beta), error_B1HW - beta / 2)
    if foreground_only:
        return region_mean(error_B1HW, foreground(real_B1HW))
    return error_B1HW.mean(tuple(range(1, error_B1HW.ndim)))


def ssim_terms(
    regions: str,
    image_B1HW: Tensor,
    real_B1HW: Tensor,
    tumour_B1HW: Tensor,
    healthy_B1HW: Tensor,
    range_B: Tensor,
    offset: float = 0.0,
) -> Terms:
    """1 - SSIM over each region of the brain (0 for an empty region).

    `offset` is added to the brain of both images. Their background is set to 0.
    """
    brain_B1HW = foreground(real_B1HW)
    image, real = (torch.where(brain_B1HW, x + offset, 0) for x in (image_B1HW, real_B1HW))
    dissimilarity_B1HW = 1 - ssim_map(image, real, range_B)
    if regions == "whole":
        return {"ssim_brain": region_mean(dissimilarity_B1HW, brain_B1HW)}
    return {
        "ssim_healthy": region_mean(dissimilarity_B1HW, brain_B1HW & healthy_B1HW),
        "ssim_tumour": region_mean(dissimilarity_B1HW, brain_B1HW & tumour_B1HW),
    }


def segmentation_loss(outputs: GeneratorOutputs, logits: str, tversky: TverskyConfig | None) -> Tensor:
    """(B,) focal Tversky loss of the outputs' field `logits`; 0 for slices without labels."""
    loss_B = focal_tversky(
        tversky or TverskyConfig(), outputs.required(logits), outputs.required("labels_BHW")
    )
    return labelled_only(loss_B, outputs.required("has_labels_B"))


def feature_matching(first: Sequence[Tensor], second: Sequence[Tensor], brain_B1HW: Tensor) -> Tensor:
    """(B,) mean absolute difference of features inside the brain, averaged over the stages of an encoder.

    A pixel of a smaller stage is brain if one of its pixels at full size is. 0 for a slice without brain.

    Raises:
        ValueError: There are no features.
    """
    if not first:
        raise ValueError("segmenter features are needed: the weight of their term is not 0")
    brain = brain_B1HW.float()
    errors = [
        region_mean(
            (at_least_float32(a) - at_least_float32(b)).abs().mean(1, keepdim=True),
            F.adaptive_max_pool2d(brain, a.shape[2:]) > 0,
        )
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(errors).mean(0)


def feature_distance(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """(B,) 1 - cosine similarity of two bottlenecks, each taken as one vector."""
    first, second = at_least_float32(first_BCHW), at_least_float32(second_BCHW)
    # The gradient at a vector of zeros is at most 1 / eps, which must be finite in float16.
    return 1 - F.cosine_similarity(first.flatten(1), second.flatten(1), eps=1e-4)


def patch_loss(patch_B1hw: Tensor, real: bool) -> Tensor:
    """(B,) binary cross-entropy of the patch logits with "real" or "synthetic", mean over patches."""
    logits = at_least_float32(patch_B1hw)
    return F.softplus(-logits if real else logits).mean((1, 2, 3))


def class_loss(class_BM: Tensor, target_B: Tensor) -> Tensor:
    """(B,) cross-entropy of the modality logits."""
    return F.cross_entropy(at_least_float32(class_BM), target_B, reduction="none")


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(list(values)).sum(0)
