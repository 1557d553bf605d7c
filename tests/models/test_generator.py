"""The generator against the published outputs, against its description, and against itself run in other ways."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from brasyn_dist.config import GeneratorConfig
from brasyn_dist.models.feature_fusion import mix_rows
from brasyn_dist.models.hfgan import HFGANGenerator
from brasyn_dist.models.layers import unstack
from brasyn_dist.models.published_weights import convert_generator
from brasyn_dist.models.registry import Generator, build_generator
from brasyn_dist.preprocessing.normalisation import mask_missing
from tests.models.conftest import reference, small_config

SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(range(4), n)]
BATCH = len(SUBSETS)


def every_availability() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One sample for each set of available modalities: inputs, availability, a missing target, view."""
    generator = torch.Generator().manual_seed(5)
    available_BM = torch.tensor([[m in subset for m in range(4)] for subset in SUBSETS])
    x_BMHW = torch.randn(BATCH, 4, 48, 48, generator=generator, dtype=torch.float64)
    target_B = torch.tensor([max(set(range(4)) - set(subset)) for subset in SUBSETS])
    return mask_missing(x_BMHW, available_BM), available_BM, target_B, torch.arange(BATCH) % 3


def by_the_description(g: Generator, x: Tensor, available: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """docs/explanation/method.md, section 3, one sample at a time with plain sums over the modalities that are available."""
    images, bottlenecks = [], []
    for b in range(len(x)):
        chosen = [m for m in range(4) if available[b, m]]
        early = g.early_encoder(x[b : b + 1])
        early_gate = g.early_gate(early[-1])
        one = [
            functional_call(g.modality_encoders, weights, x[b : b + 1, m : m + 1])
            for m, weights in enumerate(unstack(g.modality_encoders, 4))
        ]
        stages = list(zip(*one))
        gates = [
            functional_call(g.modality_gates, weights, features)
            for weights, features in zip(unstack(g.modality_gates, 4), stages[-1])
        ]
        means = [sum(stage[m] for m in chosen) / len(chosen) for stage in stages]
        early_too = len(chosen) > 1 or g.config.early_fusion == "described"
        skips = [e + m for e, m in zip(early, means)] if early_too else means
        features = [stages[-1][m] for m in chosen]
        weights = torch.softmax(torch.stack([gates[m] for m in chosen]), 0)
        total = sum(gates[m] * f for m, f in zip(chosen, features))
        mean = sum(w * f for w, f in zip(weights, features))
        if early_too:
            total, mean = total + early_gate * early[-1], mean + early[-1]
        bottleneck = g.fusion.projection(torch.cat([total, mean], 1))
        images.append(g.decoder(g.infuser(bottleneck, target[b : b + 1], None), skips))
        bottlenecks.append(bottleneck)
    return torch.cat(images), torch.cat(bottlenecks)


@pytest.mark.real
@pytest.mark.parametrize("execution", ["separate", "grouped"])
@pytest.mark.parametrize("name", ["generator-grouped", "generator-separate", "generator-grouped-view"])
def test_equals_the_published_network(shared, name, execution):
    tensors = reference(shared, name)
    config, state = convert_generator(tensors, heads=4)
    generator = HFGANGenerator(config, execution).double()
    generator.load_state_dict(state)
    with torch.no_grad():
        image, bottleneck = generator(
            tensors["input"].double(), tensors["available"].bool(), tensors["target"], tensors["view"]
        )
    assert sorted(tensors["available"].sum(1).tolist()) == [1, 2, 2, 3, 3]
    assert (image - tensors["output"]).abs().amax((1, 2, 3)).max() < 1e-9
    assert (bottleneck - tensors["bottleneck"]).abs().amax((1, 2, 3)).max() < 1e-9


@pytest.mark.parametrize(("view", "parameters"), [(False, 80_039_041), (True, 80_859_521)])
def test_published_shape_has_the_published_number_of_parameters(view, parameters):
    with torch.device("meta"):
        generator = HFGANGenerator(GeneratorConfig(view_embedding=view, decoder="published"))
    assert sum(p.numel() for p in generator.parameters()) == parameters


def test_published_shape_costs_134_gflop_a_slice():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        generator = HFGANGenerator(GeneratorConfig(decoder="published"))
        inputs = (
            torch.empty(1, 4, 240, 240),
            torch.ones(1, 4, dtype=torch.bool),
            torch.zeros(1, dtype=torch.int64),
        )
        with FlopCounterMode(display=False) as counter:
            image, bottleneck = generator(*inputs)
    assert image.shape == (1, 1, 240, 240)
    assert bottleneck.shape == (1, 640, 15, 15)
    assert counter.get_total_flops() == pytest.approx(134e9, rel=0.01)


READINGS = (
    {},
    {"convolutions_per_block": 2},
    {"decoder": "published"},
    {"early_fusion": "described"},
    {"residual_block": "described", "convolutions_per_block": 2, "position_embedding": "sinusoidal"},
)
"""Options that follow the text or the published code where they differ."""


@pytest.mark.parametrize("options", READINGS, ids=str)
def test_follows_the_description_for_every_availability(options):
    generator = build_generator(small_config(**options), seed=1).double()
    x, available, target, _ = every_availability()
    with torch.no_grad():
        image, bottleneck = generator(x, available, target)
        expected_image, expected_bottleneck = by_the_description(generator, x, available, target)
    assert (image - expected_image).abs().max() < 1e-12
    assert (bottleneck - expected_bottleneck).abs().max() < 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "described"},
        {"attention": "published", "decoder": "published"},
        {"attention": "none"},
        *READINGS[3:],
    ],
    ids=str,
)
@pytest.mark.parametrize("view", [False, True])
def test_grouped_and_separate_execution_agree_in_results_and_gradients(options, view):
    x, available, target, views = every_availability()
    results = []
    for execution in ("separate", "grouped"):
        config = small_config(view_embedding=view, **options)
        generator = build_generator(config, 2, encoder_execution=execution).double()
        image, bottleneck = generator(x, available, target, views)
        (image.square().sum() + bottleneck.square().sum()).backward()
        results.append((image, bottleneck, {n: p.grad for n, p in generator.named_parameters()}))
    (image, bottleneck, gradients), (image2, bottleneck2, gradients2) = results
    assert (image - image2).abs().max() < 1e-12
    assert (bottleneck - bottleneck2).abs().max() < 1e-12
    for name, gradient in gradients.items():
        scale = 1 + gradient.abs().max()
        assert (gradient - gradients2[name]).abs().max() / scale < 1e-10, name
        assert gradient.abs().max() > 0, name


def outputs(**options) -> tuple[Tensor, Tensor, HFGANGenerator]:
    """Images of every availability, number of available modalities of each, and the network."""
    generator = build_generator(small_config(**options), seed=1).double()
    x, available, target, _ = every_availability()
    with torch.no_grad():
        return generator(x, available, target)[0], available.sum(1), generator


def test_the_described_decoder_uses_the_full_size_skip_and_the_published_one_does_not():
    for decoder, used in (("described", True), ("published", False)):
        generator = outputs(decoder=decoder)[2]
        stages = generator.encode_early(every_availability()[0]).stages
        assert (stages[0].shape[2] == 48) == used
        assert generator.decoder.final_block.convolutions[0].weight.shape[1] == (16 if used else 8)


def test_early_features_of_one_available_modality_are_used_as_described_or_left_out_as_published():
    generator = outputs()[2]
    for early_fusion, used in (("described", True), ("published", False)):
        config = small_config(early_fusion=early_fusion)
        network = HFGANGenerator(config).double()
        network.load_state_dict(generator.state_dict())
        x, available, target, _ = every_availability()
        image, _ = network(x, available, target)
        image[available.sum(1) == 1].square().sum().backward()
        assert (network.early_encoder.stem.weight.grad.abs().max() > 0) == used


def test_early_fusion_changes_only_samples_with_one_available_modality():
    (described, count, first), (published, _, second) = (
        outputs(early_fusion=reading) for reading in ("described", "published")
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    differs = (described - published).abs().amax((1, 2, 3)) > 1e-9
    assert torch.equal(differs, count == 1)


def test_sinusoidal_positions_are_no_parameters_and_differ_between_tokens():
    generator = outputs(position_embedding="sinusoidal")[2]
    assert not [name for name in generator.state_dict() if "position" in name]
    positions = generator.infuser._positions()[0]
    assert positions.shape == (9, 80) and torch.cdist(positions, positions).add(torch.eye(9)).min() > 0.1
    assert "infuser.position_1TW" in outputs()[2].state_dict()


def test_without_channel_attention_the_number_of_parameters_is_the_same():
    """Gates are 1, so features are summed, and the same parameters refine each bottleneck."""
    plain, attentive = outputs(attention="none")[2], outputs()[2]
    names = {name: p.shape for name, p in attentive.named_parameters()}
    assert {name: p.shape for name, p in plain.named_parameters()} == names
    encoded = plain.encode_early(every_availability()[0])
    assert (encoded.gate == 1).all()
    raw = plain.early_encoder(every_availability()[0])[-1]
    torch.testing.assert_close(encoded.stages[-1], raw + plain.early_gate(raw))


def test_a_sample_does_not_depend_on_its_batch_mates():
    generator = build_generator(small_config(), 3).double()
    x, available, target, _ = every_availability()
    with torch.no_grad():
        together, _ = generator(x, available, target)
        for b in range(BATCH):
            one = slice(b, b + 1)
            alone, _ = generator(x[one], available[one], target[one])
            assert (together[one] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("execution", ["separate", "grouped"])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_synthesise_is_forward_for_one_availability(subset, execution):
    generator = build_generator(small_config(view_embedding=True), 4, encoder_execution=execution).double()
    x = torch.randn(2, 4, 48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = max(set(range(4)) - set(subset))
    available = torch.tensor([[m in subset for m in range(4)]] * 2)
    with torch.no_grad():
        image = generator.synthesise(x, subset, target, view=1)
        views, targets = torch.full((2,), 1), torch.full((2,), target)
        expected, _ = generator(mask_missing(x, available), available, targets, views)
    assert (image - expected).abs().max() < 1e-12


@pytest.mark.parametrize("execution", ["separate", "grouped"])
def test_synthesise_does_not_run_the_encoders_of_missing_modalities(execution):
    """NaN in the weights of a missing modality does not change the result."""
    generator = build_generator(small_config(), 4, encoder_execution=execution)
    x = torch.randn(2, 4, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = generator.synthesise(x, (0, 1, 3), 2)
        for parameter in (*generator.modality_encoders.parameters(), *generator.modality_gates.parameters()):
            parameter.unflatten(0, (4, -1))[2].fill_(float("nan"))
        assert torch.equal(generator.synthesise(x, (0, 1, 3), 2), expected)


def test_two_threads_share_a_generator():
    """functional_call replaces parameters while it runs: threads must not see those of each other."""
    generator = build_generator(small_config(), 4)
    inputs = [torch.randn(1, 4, 48, 48, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    weights = {name: tensor.clone() for name, tensor in generator.state_dict().items()}

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return generator.synthesise(x, (0, 1, 3), 2)

    expected = list(map(run, inputs))
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(run, inputs))
    assert all(torch.equal(a, b) for a, b in zip(results, expected))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in generator.state_dict().items())


def test_view_is_used_where_there_is_an_embedding_and_then_needed():
    x, available, target, _ = every_availability()
    generator = build_generator(small_config(view_embedding=True), 5).double()
    axial, sagittal = torch.zeros(BATCH, dtype=torch.int64), torch.ones(BATCH, dtype=torch.int64)
    with torch.no_grad():
        images = [generator(x, available, target, view)[0] for view in (axial, sagittal)]
        assert (images[0] - images[1]).abs().max() > 1e-6
        with pytest.raises(ValueError, match="view_B"):
            generator(x, available, target)


def test_channels_last_gives_the_same_result_and_stays_channels_last():
    x, available, target, _ = every_availability()
    generator = build_generator(small_config(), 6).double()
    with torch.no_grad():
        expected, _ = generator(x, available, target)
        generator = generator.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        image, bottleneck = generator(x, available, target)
        stages = generator.encode_modalities(x[:, :, None].unbind(1)).stages
    assert (image - expected).abs().max() < 1e-12
    assert all(s.is_contiguous(memory_format=torch.channels_last) for s in (bottleneck, *stages))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mixing_is_a_sum_of_rows_that_copies_none(layout):
    rows = torch.randn(5, 6, 4, 4, dtype=torch.float64).contiguous(memory_format=layout)
    mix = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.float64)
    mixed = mix_rows(mix, rows)
    expected = torch.stack([rows[0] + rows[2], rows[4], rows.sum(0)])
    torch.testing.assert_close(mixed, expected)
    assert mixed.is_contiguous(memory_format=layout)
    with torch.profiler.profile() as profile:
        mix_rows(mix, rows)
    operations = {event.key for event in profile.key_averages()}
    assert "aten::mm" in operations
    assert not operations & {"aten::clone", "aten::copy_", "aten::contiguous"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite_and_close(dtype):
    x, available, target, _ = every_availability()
    x = x.float()
    generator = build_generator(small_config(), 7)
    expected, _ = generator(x, available, target)
    with torch.autocast("cpu", dtype):
        image, bottleneck = generator(x, available, target)
    (image.float().sum() + bottleneck.float().sum()).backward()
    assert image.dtype == dtype
    assert (image.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


def test_initial_weights_are_a_function_of_configuration_and_seed():
    def weights(seed: int, execution: str) -> dict[str, Tensor]:
        return build_generator(small_config(), seed, encoder_execution=execution).state_dict()

    torch.manual_seed(1)
    first = weights(0, "separate")
    torch.manual_seed(2)
    second, other = weights(0, "grouped"), weights(1, "separate")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["early_encoder.stem.weight"], other["early_encoder.stem.weight"])


@pytest.mark.slow
def test_compiles_as_one_graph():
    x, available, target, views = every_availability()
    generator = build_generator(small_config(view_embedding=True), 8).double()
    explanation = torch._dynamo.explain(generator)(x, available, target, views)
    assert explanation.graph_break_count == 0
    assert explanation.graph_count == 1
