"""Updates of the recommended generator: micro-batches, compilation, precision, cost, weight decay."""

import pytest
import torch

from brasyn_dist.config import Config, load_config
from brasyn_dist.training.cost_model import measure
from tests.training.small import UNET, Update


def config(*overrides: str) -> Config:
    return load_config(None, [*UNET, *overrides])


def test_the_gradient_does_not_depend_on_micro_batches() -> None:
    whole = Update(config(), dtype=torch.float64).gradients()
    parts = Update(config("training.micro_batch_size=3"), dtype=torch.float64).gradients()
    for name, wanted in (whole[0] | whole[1]).items():
        difference = ((parts[0] | parts[1])[name] - wanted).abs().max()
        assert difference < 1e-10 * max(1.0, float(wanted.abs().max())), name
    assert any(gradient.abs().max() > 0 for gradient in whole[1].values())


def test_network_and_objective_are_compiled_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    update = Update(
        config("runtime.compile=aot_eager", "runtime.precision=bf16", "runtime.channels_last=true")
    )
    update(0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for k in range(1, 3):
            update(k)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_bf16_agrees_with_float32_after_20_updates() -> None:
    """The tolerance is 2 % of the loss."""
    losses = []
    for precision in ("no", "bf16"):
        update = Update(config(f"runtime.precision={precision}"))
        losses.append([float(update(k)["reconstruction"]) for k in range(20)])
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=0.02)
    assert losses[0][-1] < 0.97 * losses[0][0]


def test_weight_decay_shrinks_weights_that_have_no_gradient() -> None:
    update = Update(config("objective.reconstruction=0", "objective.ssim=1e-30"))
    before = {name: p.detach().clone() for name, p in update.state.generator.module.named_parameters()}
    update()
    for name, parameter in update.state.generator.module.named_parameters():
        if name.startswith("narrowings"):
            # The rate of the update is 1e-3 and the weight decay 1e-2; Adam's step for almost no gradient is 0.
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - 1e-5), rtol=1e-6, atol=1e-7)


def test_cost_of_the_full_size() -> None:
    cost = measure(load_config("configs/recommended.yaml"))
    assert (cost.generator_parameters, cost.discriminator_parameters) == (27_436_065, 0)
    whole = load_config(
        "configs/recommended.yaml", ["augmentation.crop=null", "generator.image_size=[160,208]"]
    )
    pixels = 160 * 224 / (128 * 160)  # 208 columns are padded to a multiple of 32
    assert measure(whole).operations_per_slice == pytest.approx(pixels * cost.operations_per_slice, rel=0.02)
