"""Export of a network as a `torch.export` program, which runs without this package.

    network --torch.export--> model.pt2

    program = torch.export.load("model.pt2").module()
    generator: image_B1HW = program(x_BMHW, available_BM, target_B, view_B[, context_BNMHW])
    segmenter: logits_BCHW = program(x_BMHW, view_B, type_B)

The batch size is free, the slice size is that of the training. Slices are normalised as config.json
describes, missing ones -1.
"""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from brasyn_dist.brats import image_shape
from brasyn_dist.common.files import atomic_write_bytes, atomic_write_text, sha256_of
from brasyn_dist.models.model_card import CARD
from brasyn_dist.models.pretrained import GENERATOR, SEGMENTER, PretrainedNetwork

PROGRAM_FILE = "model.pt2"
USAGE = """```python
import torch

program = torch.export.load("model.pt2").module()
```

{inputs} The batch size B is free. `slices` are float32 (B, M, H, W) in the order {names}, normalised as
described below: background and missing slices are -1."""
INPUTS = {
    GENERATOR: "`program(slices, available, target, view)` returns the slices (B, 1, H, W), normalised. "
    "`available` is bool (B, M), `target` int64 (B,) the number of the modality, `view` int64 (B,): 0 axial, "
    "1 sagittal, 2 coronal.",
    SEGMENTER: "`program(slices, view, tumour_type)` returns logits (B, background and labels, H, W). "
    "`view` is int64 (B,): 0 axial, 1 sagittal, 2 coronal; `tumour_type` int64 (B,): 0 glioma, 1 metastasis, "
    "-1 unknown.",
}
CONTEXT = (
    " `view` is followed by the neighbouring slices, float32 (B, {count}, M, H, W): {context} before and "
    "{context} after each slice, normalised in the same way. At the ends of the brain its "
    "first or last slice is repeated."
)
"""Further input of a network with a context."""
BATCH = torch.export.Dim("batch", min=1, max=1024)


class FirstOutput(nn.Module):
    """A network of which only the first output is exported, if it has several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """The first output for the inputs of the network."""
        outputs = self.network(*inputs)
        return outputs[0] if isinstance(outputs, tuple) else outputs


def context_of(network: PretrainedNetwork) -> int:
    """Neighbouring slices on each side that are inputs of a network."""
    return getattr(network, "context", 0)


def example_inputs(network: PretrainedNetwork) -> tuple[Tensor, ...]:
    """Inputs of `forward` in the right shapes and types."""
    batch, modalities = 2, len(network.modality_set)
    x_BMHW = torch.zeros(batch, modalities, *image_shape(network.config.image_size))
    # Two tensors: torch.export would take one tensor at two places for one input.
    first_B, second_B = (torch.zeros(batch, dtype=torch.int64) for _ in range(2))
    if network.kind == GENERATOR:
        available_BM = torch.ones(batch, modalities, dtype=torch.bool)
        inputs = (x_BMHW, available_BM, first_B, second_B)
        context = context_of(network)
        if not context:
            return inputs
        return (*inputs, x_BMHW[:, None].expand(-1, 2 * context, -1, -1, -1).contiguous())
    return x_BMHW, first_B, second_B


def export_program(network: PretrainedNetwork) -> torch.export.ExportedProgram:
    """The program of a network; its batch size is free."""
    inputs = example_inputs(network)
    with torch.no_grad():
        return torch.export.export(
            FirstOutput(network).eval(), inputs, dynamic_shapes=((({0: BATCH},) * len(inputs)),)
        )


def write_program(network: PretrainedNetwork, folder: Path, name: str, evaluation: Path | None) -> None:
    """Write model.pt2, config.json with the preprocessing, and the model card.

    Args:
        network: A network with its preprocessing.
        folder: Exists.
        name: Name of the model.
        evaluation: Folder of `brasyn evaluate`, whose scores the model card quotes.
    """
    program = io.BytesIO()  # errors of the disk have no number when torch writes the file
    torch.export.save(export_program(network), program)
    atomic_write_bytes(folder / PROGRAM_FILE, program.getvalue())
    network.save_config(folder, sha256_of(folder / PROGRAM_FILE))
    names = ", ".join(network.modality_set.modalities)
    inputs, context = INPUTS[network.kind], context_of(network)
    if context:
        inputs += CONTEXT.format(count=2 * context, context=context)
    usage = USAGE.format(names=names, inputs=inputs)
    atomic_write_text(folder / CARD, network.card(name, usage, evaluation))
