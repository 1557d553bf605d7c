"""Options of the training data: which slices, in which order, with which random changes."""

from typing import Annotated, Literal

from pydantic import Field

from brasyn_dist.brats import VIEWS
from brasyn_dist.config.schema import Above0, Count, Few, PathText, Probability, Seed, Share, dataclass
from brasyn_dist.errors import ConfigError

NormalisationMode = Literal["zscore", "slice", "case"]
Spread = Annotated[float, Field(ge=0, le=10)]


@dataclass(frozen=True)
class DataConfig:
    """Selection and loading of training slices."""

    shards: PathText = "shards"
    """Shard set: folder, URL prefix, or `pipe:` command with `{}` for the file name."""
    views: tuple[str, ...] = ("axial",)
    """Views of the slices: axial, sagittal, coronal."""
    cohorts: tuple[str, ...] = ()
    """Cohorts to use; empty: all cohorts of the shard set."""
    quarantine: tuple[str, ...] = ()
    """Keys of damaged samples to leave out, of a chunk with its case; part of the data fingerprint."""
    min_tumour_fraction: Share = 0.0
    """Minimum fraction of tumour pixels in a slice (method: 0.001 for the segmenter); 0: all slices."""
    normalisation: NormalisationMode = "zscore"
    """`zscore`: statistics of the data set. `slice`: each slice to [-1, 1], as in HF-GAN. `case`: each
    volume divided by its median, which removes the scale of the scanner."""
    cache_dir: PathText | None = None
    """Node-local folder for copies of shards, which are copied once per node and verified. null: shards of a
    folder are read directly, and shards behind a URL are copied to the system's temporary folder."""
    cache_gib: Above0 = 200.0
    """Size limit of the cache in GiB."""
    threads: Few = 2
    """Threads of each process that read and decode."""
    prefetch: Few = 4
    """Batches that each process reads in advance."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.views) - set(VIEWS))
        if unknown or not self.views:
            raise ConfigError(f"data.views: {unknown or 'empty'}; choose from {', '.join(VIEWS)}")
        for name in ("views", "cohorts", "quarantine"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"data.{name}: {list(values)} names one twice; name each once")


@dataclass(frozen=True)
class SampleOrderConfig:
    """Order of the samples, a pure function of the seed and the batch number (data/loading/sampler.py)."""

    seed: Seed = 0
    """Seed of the sample order, target modalities and masks."""
    block_shards: Count | None = None
    """Shuffle within blocks of this many shards, for storage that needs locality; null: the whole set."""


@dataclass(frozen=True)
class OrderConfig(SampleOrderConfig):
    """Order of the samples and available modalities of each."""

    availability: Literal["three", "any", "mixed"] = "three"
    """`three`: all modalities but the target are available. `any`: one to three are (half of the samples
    have exactly one). `mixed`: one to three are (half of the samples have three)."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training slices (data/loading/augmentation.py); the thesis uses none."""

    crop: tuple[Count, Count] | None = None
    """[rows, columns] of a random part of the slice that is trained on; null: the whole slice. For generators
    without a position embedding (generator.kind=unet). Inference always uses whole slices."""
    mirror: Probability = 0.0
    """Probability of a left-right flip (axial and coronal slices; sagittal slices are not changed)."""
    intensity: Spread = 0.0
    """One factor for all modalities of a slice, log-uniform in [exp(-intensity), exp(intensity)]."""
    contrast: Spread = 0.0
    """An additional factor for each modality of a slice, log-uniform in [exp(-contrast), exp(contrast)]."""


@dataclass(frozen=True)
class PatchConfig:
    """Patches of volumes that a network of volumes is trained on (data/loading/patches.py)."""

    size: tuple[Few, Few, Few] = (64, 64, 32)
    """[x, y, z]: voxels of a patch."""
    tumour_share: Probability = 0.5
    """Share of the patches whose centre is a tumour voxel, in cases with a tumour; the others have any voxel
    of the brain as centre."""
