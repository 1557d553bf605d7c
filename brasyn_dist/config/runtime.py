"""Options of execution, which do not change what is computed."""

from typing import Annotated, Literal

from brasyn_dist.config.models import Recompute
from brasyn_dist.config.schema import FALSE_IS_NO, FALSE_IS_OFF, Above0, Few, Minutes, dataclass


@dataclass(frozen=True)
class RuntimeConfig:
    """Execution of the same mathematics; null: chosen by device."""

    precision: Annotated[Literal["no", "bf16", "fp16"], FALSE_IS_NO] = "no"
    """Autocast; SSIM is always computed in float32. fp16 needs CUDA."""
    compile: Annotated[Literal["off", "default", "max-autotune", "aot_eager"], FALSE_IS_OFF] | None = None
    """torch.compile of networks and objective. `aot_eager` captures the graphs without code generation, as a
    quick check."""
    channels_last: bool | None = None
    """Memory format of the images: channels last."""
    encoder_execution: Literal["grouped", "separate"] | None = None
    """The four modality encoders as one grouped network or as four networks; same weights and results."""
    recompute: Recompute = "nothing"
    """`activations`: recompute what lies between two convolutions (norms, SiLU, padding, upsampling) in the
    backward pass: 46 % less memory for a slice, bit-identical results."""
    threads: Few | None = None
    """Threads of tensor operations in each process; null: on CPUs the node's cores divided by its
    processes."""
    tf32: bool = True
    """CUDA rounds the factors of float32 products to 10 bits, several times faster; no effect elsewhere."""
    cudnn_benchmark: bool = True
    """cuDNN measures its algorithms for every new shape and uses the fastest (shapes are constant here)."""
    gradient_as_bucket_view: bool = True
    """DistributedDataParallel: gradients are views of the communication buckets."""
    static_graph: bool = False
    """DistributedDataParallel: every update has the same graph (true without micro-batches)."""
    gradient_exchange: Literal["fp32", "bf16"] = "fp32"
    """Number format of the gradient exchange; bf16 halves the bytes, keeps 8 bits and needs CUDA."""
    collective_timeout_minutes: Minutes = 30.0
    """Minutes that a rank waits for another one before it ends the run."""
    hang_minutes: Minutes | None = None
    """Minutes without progress after which a rank writes its Python stacks to logs/; null: half of the
    collective timeout."""
    time_communication: bool = True
    """Measure how long ranks wait for the gradient exchange (a DistributedDataParallel hook; same results).
    Not measured with gradient_exchange=bf16 or under DeepSpeed."""
    rank_shares: tuple[Above0, ...] = ()
    """Fraction of the global batch for each rank, in any unit: [2, 1] gives rank 0 two thirds. Empty: equal
    parts."""
