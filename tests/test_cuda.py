"""What only a GPU shows: equal numbers on both devices, no synchronisation, finite low-precision updates.

`benchmarks/gpu_day.sh` runs this file on a GPU machine. Without one every test skips.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from brasyn_dist.config import GeneratorConfig
from brasyn_dist.inference.synthesis import Member, synthesise_case
from brasyn_dist.models.registry import build_generator
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.training.small import Update, small_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VIEWS = ("generator.view_embedding=true",)


@pytest.mark.parametrize("mode", ["off", "default"])
def test_cuda_reports_no_synchronisation_in_an_update(mode: str) -> None:
    update = Update(small_config(*VIEWS, f"runtime.compile={mode}"), "cuda")
    for k in range(2):  # compilation and first allocations may wait
        update(k)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "more",
    [
        ("runtime.compile=off",),
        ("runtime.compile=off", "runtime.channels_last=false", "runtime.encoder_execution=grouped"),
        ("runtime.compile=default",),
        ("runtime.compile=default", "training.updates_per_batch=1"),
    ],
    ids=["eager", "grouped", "compiled", "one update"],
)
def test_cuda_gradients_are_those_of_the_cpu(more: tuple[str, ...]) -> None:
    """Terms and gradients of one update in float64."""
    one_update = [option for option in more if option.startswith("training.")]
    terms, gradients = Update(small_config(*VIEWS, *one_update), dtype=torch.float64).gradients()
    cuda_terms, cuda_gradients = Update(small_config(*VIEWS, *more), "cuda", torch.float64).gradients()
    for name, value in terms.items():
        torch.testing.assert_close(cuda_terms[name].cpu(), value, rtol=1e-6, atol=1e-9)
    for name, gradient in gradients.items():
        error = (cuda_gradients[name].cpu() - gradient).norm() / gradient.norm().clamp(min=1e-3)
        assert error < 1e-6, name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_cuda_low_precision_updates_are_close(precision: str) -> None:
    exact = Update(small_config(*VIEWS, "runtime.tf32=false", "runtime.compile=off"), "cuda")
    rounded = Update(small_config(*VIEWS, f"runtime.precision={precision}"), "cuda")
    expected, got = exact()["reconstruction"], rounded()["reconstruction"]
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.0)


def test_cuda_case_is_that_of_the_cpu(tmp_path: Path) -> None:
    """Synthesis in float32: rounded intensities differ by at most a few units."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sizes = GeneratorConfig(image_size=32, base_channels=8, heads=2, transformer_layers=1)
    images_MXYZ = np.random.default_rng(0).integers(1, 3000, (4, 32, 32, 24)).astype(np.int16)
    made = []
    for device in ("cpu", "cuda"):
        generator = build_generator(sizes, 0).to(device).eval()
        generator.preprocessing = Preprocessing(PUBLISHED)
        member = Member("axial", generator, tmp_path, "")
        made.append(synthesise_case([member], images_MXYZ, ("t1n", "t1c", "t2w"), ["t2f"])["t2f"])
    assert np.abs(made[0] - made[1]).max() <= 3
