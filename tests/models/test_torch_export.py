"""The torch.export program gives the network's output in a process that cannot import this package."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from brasyn_dist.brats import MODALITIES
from brasyn_dist.config import AnyGeneratorConfig, SegmenterConfig, UNetConfig
from brasyn_dist.models.export import export_network, load_network
from brasyn_dist.models.registry import build_generator
from brasyn_dist.models.segmenter import build_segmenter
from brasyn_dist.preprocessing.preprocessing import Preprocessing
from brasyn_dist.preprocessing.statistics import PUBLISHED
from tests.models.conftest import small_config

pytestmark = pytest.mark.slow
PREPROCESSING = Preprocessing(PUBLISHED, ("axial", "sagittal"))
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "brasyn_dist":
            raise ImportError("no brasyn_dist here")
sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1]).module()
inputs = load_file(sys.argv[2])
with torch.no_grad():
    arguments = {k: [inputs[f"{k}/{i}"] for i in range(int(sys.argv[4]))] for k in ("one", "three")}
    results = {k: program(*values).contiguous() for k, values in arguments.items()}
save_file(results, sys.argv[3])
assert not any(m.startswith("brasyn_dist") for m in sys.modules)
"""


def run_alone(folder: Path, inputs: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
    """Outputs of `folder`/model.pt2 for each tuple of inputs."""
    tensors = {f"{k}/{i}": t.contiguous() for k, values in inputs.items() for i, t in enumerate(values)}
    save_file(tensors, folder / "inputs.safetensors")
    names = [folder / n for n in ("model.pt2", "inputs.safetensors", "outputs.safetensors")]
    count = len(next(iter(inputs.values())))
    command = [sys.executable, "-c", ALONE, *map(str, names), str(count)]
    done = subprocess.run(
        command, cwd=folder, env={"PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "outputs.safetensors")


def slices(batch: int) -> torch.Tensor:
    return torch.randn(batch, len(MODALITIES), 48, 48, generator=torch.Generator().manual_seed(batch))


def unet(context: int) -> UNetConfig:
    """Slices of 48 x 48 are padded to 64 x 64."""
    return UNetConfig(
        image_size=48, widths=(16,) * 5, units=1, full_channels=16, condition=16, context=context
    )


@pytest.mark.parametrize(
    "config", [small_config(view_embedding=True), unet(0), unet(1)], ids=["hfgan", "unet", "unet 2.5-D"]
)
def test_a_generator_for_any_batch_and_availability(tmp_path: Path, config: AnyGeneratorConfig):
    built = build_generator(config, 1)
    with torch.no_grad():  # a new U-Net gives the mean of the inputs: its last layers are 0
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    built.save_pretrained(tmp_path / "export", PREPROCESSING)
    export_network(tmp_path / "export", tmp_path / "out", "torch-export", "brain")
    inputs = {
        "one": (slices(1), torch.tensor([[True, False, True, True]]), torch.tensor([1]), torch.tensor([1])),
        "three": (
            slices(3),
            torch.tensor([[True, True, False, True], [False, True, False, False], [True, True, True, True]]),
            torch.tensor([2, 0, 3]),
            torch.tensor([0, 1, 2]),
        ),
    }
    network = load_network(tmp_path / "export")
    if network.context:
        inputs = {k: (*v, torch.stack([v[0].flip(2), v[0].flip(3)], 1)) for k, v in inputs.items()}
    results = run_alone(tmp_path / "out", inputs)
    for name, values in inputs.items():
        with torch.no_grad():
            torch.testing.assert_close(results[name], network(*values)[0], rtol=0, atol=1e-5)
    card = (tmp_path / "out/README.md").read_text()
    assert "torch.export.load" in card and ("(B, 2, M, H, W)" in card) == bool(network.context)
    assert (tmp_path / "out/config.json").is_file()


def test_a_segmenter(tmp_path: Path):
    config = SegmenterConfig(image_size=48, widths=(8, 16))
    build_segmenter(config, 1).save_pretrained(tmp_path / "export", PREPROCESSING)
    export_network(tmp_path / "export", tmp_path / "out", "torch-export", "tumour")
    inputs = {
        "one": (slices(1), torch.tensor([0]), torch.tensor([-1])),
        "three": (slices(3), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])),
    }
    results = run_alone(tmp_path / "out", inputs)
    network = load_network(tmp_path / "export")
    for name, values in inputs.items():
        with torch.no_grad():
            torch.testing.assert_close(results[name], network(*values), rtol=0, atol=1e-5)
