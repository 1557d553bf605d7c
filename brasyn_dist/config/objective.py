"""Options of the loss functions."""

from typing import Annotated, Literal, Self

from pydantic import Field

from brasyn_dist.config.schema import Above0, PathText, Weight, dataclass
from brasyn_dist.errors import ConfigError


@dataclass(frozen=True)
class TverskyConfig:
    """Focal Tversky loss (losses/tversky.py; docs/explanation/method.md, section 5)."""

    false_negative: Above0 = 0.3
    """Weight of false negatives."""
    false_positive: Above0 = 0.7
    """Weight of false positives."""
    exponent: Annotated[float, Field(ge=1, le=100)] = 1.33
    """Focal exponent; below 1 the gradient of a perfect prediction is infinite."""
    smoothing: Above0 = 1.0
    """Pixels added to the numerator and denominator for each class. The method's 1e-6 applies to sums over
    a batch, which contains every class; a slice without a class would have no gradient with it."""
    classes: Literal["mean", "sum"] = "mean"
    """Mean over the classes (published code), or their sum (text of the thesis: with four classes, four times
    the mean)."""


@dataclass(frozen=True)
class RegressionConfig:
    """Weights of the objective of networks of volumes; 0 disables a term."""

    reconstruction: Weight = 10.0
    """Weight of the reconstruction error (L1) of the target modality."""
    smooth_l1: Weight = 0.0
    """Normalised errors below this value count squared in the reconstruction error (beta of smooth L1); 0:
    L1."""
    ssim: Weight = 5.0
    """Weight of the SSIM loss."""
    ssim_regions: Literal["dual", "whole"] = "dual"
    """`dual`: healthy tissue and tumour as two terms; `whole`: the brain as one term."""
    mask_background: bool = False
    """Average reconstruction and cycle errors over foreground pixels of the target only."""


@dataclass(frozen=True)
class ObjectiveConfig(RegressionConfig):
    """Weights of the generator's objective (docs/explanation/method.md, section 5); 0 disables a term."""

    adversarial: Weight = 0.25
    """Weight of the generator's adversarial loss."""
    classification: Weight = 0.25
    """Weight of the modality classification loss of synthetic slices."""
    feature: Weight = 1.0
    """Weight of the feature consistency between the first and the second pass."""
    cycle: Weight = 1.0
    """Weight of the cycle consistency error."""
    discriminator: Weight = 0.25
    """Weight of the discriminator's cross-entropies."""
    tversky: Weight = 0.0
    """Weight of a frozen segmenter's focal Tversky loss on the completed slices (method: 5); 0: no
    segmenter."""
    segmenter_features: Weight = 0.0
    """Weight of the distance between a frozen segmenter's encoder features for the completed real and
    synthetic slices, inside the brain."""
    segmenter: PathText | None = None
    """Run folder or export folder of that segmenter; its hash is part of the run's identity."""
    auxiliary_segmentation: Weight = 0.0
    """Weight of the focal Tversky loss of the generator's own head; needs generator.segmentation_head."""

    @classmethod
    def of_volumes(cls, config: RegressionConfig) -> Self:
        """The terms of a network of volumes, and no other."""
        return cls(**vars(config), adversarial=0, classification=0, feature=0, cycle=0, discriminator=0)

    @property
    def uses_discriminator(self) -> bool:
        """Whether a term needs the discriminator. Otherwise there is none."""
        return self.adversarial > 0 or self.classification > 0

    @property
    def uses_cycle(self) -> bool:
        """Whether a term needs the cycle pass."""
        return self.cycle > 0 or self.feature > 0

    @property
    def uses_segmenter(self) -> bool:
        """Whether a term needs the frozen segmenter."""
        return self.tversky > 0 or self.segmenter_features > 0

    def __post_init__(self) -> None:
        if self.uses_segmenter and self.segmenter is None:
            name = "tversky" if self.tversky else "segmenter_features"
            raise ConfigError(
                f"objective.{name} needs a segmenter: set objective.segmenter to its run folder, or {name}=0"
            )
