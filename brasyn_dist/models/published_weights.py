"""Conversion of published weights (the thesis' checkpoints) to state dicts of this package.

    published tensors --> configuration from their shapes --> published name(s) of each tensor --> state dict

Published generators have one of two kinds of modality encoders (one grouped network, or four separate ones,
which are stacked here) and one of two kinds of transformer blocks (separate query, key and value with SiLU,
or fused with GELU).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from brasyn_dist.config import DiscriminatorConfig, GeneratorConfig
from brasyn_dist.errors import CheckpointError, ConfigError
from brasyn_dist.models.discriminator import Discriminator, feature_size
from brasyn_dist.models.hfgan import HFGANGenerator

Rules = Sequence[tuple[str, str]]

_PREFIXES = re.compile(r"^(weights\.)?((module|_orig_mod)\.)*")
_STEM = "encoder.encoder_early.conv_initial.weight"
_POSITION = "middle.embedding.position_embeddings"
_MIDDLES = "<0|1|2|3>"
"""`<a|b>` in a published name: one tensor for each alternative; ours is their concatenation along dimension
0."""

_GENERATOR_RULES: Rules = (
    (r"^early_encoder\.", "encoder.encoder_early."),
    (r"\.stem\.", ".conv_initial."),
    (r"^decoder\.blocks\.(\d+)", r"decoder.ups.\1.0"),
    (r"^decoder\.upsamplings\.(\d+)\.convolution", r"decoder.ups.\1.1.conv"),
    (r"^decoder\.final_block", "decoder.conv_final.0"),
    (r"^decoder\.final_norm", "decoder.conv_final.1"),
    (r"^decoder\.output", "decoder.conv_final.3"),
    (r"^(encoder\.encoder_.*)\.blocks\.(\d+)", r"\1.downs.\2.0"),
    (r"\.downsamplings\.(\d+)\.convolution", r".downs.\1.1.conv"),
    (r"\.norms\.0\.", ".block1.norm."),
    (r"\.convolutions\.0\.", ".block1.conv."),
    (r"\.norms\.1\.", ".block2.norm."),
    (r"\.convolutions\.1\.", ".block2.conv."),
    (r"\.shortcut\.", ".res_conv."),
    (r"^modality_gates\.", f"encoder.attn_blocks.{_MIDDLES}.attn."),
    (r"^early_gate\.", "encoder.attn_blocks.4.attn."),
    (r"\.attn\.squeeze\.", ".attn.1."),
    (r"\.attn\.excite\.", ".attn.3."),
    (r"^fusion\.projection", "encoder.conv1"),
    (r"^infuser\.projection", "middle.embedding.patch_embeddings"),
    (r"^infuser\.position_1TW", _POSITION),
    (r"^infuser\.target_embedding", "middle.modality_embedding"),
    (r"^infuser\.view_embedding", "middle.view_embedding"),
    (r"_embedding\.expand", "_embedding.1"),
    (r"_embedding\.project", "_embedding.3"),
    (r"^infuser\.norm", "middle.encoder_norm"),
)
_GROUPED_RULES: Rules = ((r"^modality_encoders\.", "encoder.encoder_middles."),)
_SEPARATE_RULES: Rules = ((r"^modality_encoders\.", f"encoder.encoder_middles.{_MIDDLES}."),)
_OLDER_BLOCK_RULES: Rules = (
    (r"^infuser\.blocks", "middle.layers"),
    (r"\.query_key_value\.", ".attn.<query|key|value>."),
    (r"\.attention_output\.", ".attn.out."),
    (r"\.mlp_norm\.", ".ffn_norm."),
    (r"\.mlp_expand\.", ".ffn.fc1."),
    (r"\.mlp_project\.", ".ffn.fc2."),
)
_NEWER_BLOCK_RULES: Rules = (
    (r"^infuser\.blocks", "middle.transformer"),
    (r"\.query_key_value\.", ".mha.in_proj_"),
    (r"\.attention_output\.", ".mha.out_proj."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.mlp_expand\.", ".ffn.0."),
    (r"\.mlp_project\.", ".ffn.2."),
)
_DISCRIMINATOR_RULES: Rules = (
    (r"^stem\.", "model.0."),
    (r"^blocks\.0\.convolution\.", "model.2."),
    (r"^blocks\.0\.norm\.", "model.3."),
    (r"^blocks\.1\.convolution\.", "model.5."),
    (r"^blocks\.1\.norm\.", "model.6."),
    (r"^blocks\.2\.convolution\.", "model.8."),
    (r"^blocks\.2\.norm\.", "model.9."),
    (r"^patch_head\.", "final."),
    (r"^class_head\.", "classifier."),
)


def convert_generator(
    published: Mapping[str, Tensor], heads: int = 16
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Configuration and state dict from the tensors of a published generator.

    Args:
        published: Tensors by name.
        heads: Attention heads, the only part of the configuration that the weights do not determine.

    Raises:
        CheckpointError: Tensors are missing, unknown or of the wrong shape.
    """
    tensors = strip_prefixes(published)
    config = read_generator_config(tensors, heads)
    separate = any(name.startswith("encoder.encoder_middles.0.") for name in tensors)
    rules = (
        *(_SEPARATE_RULES if separate else _GROUPED_RULES),
        *(_OLDER_BLOCK_RULES if config.mlp_activation == "silu" else _NEWER_BLOCK_RULES),
        *_GENERATOR_RULES,
    )
    with torch.device("meta"):
        shapes = HFGANGenerator(config).state_dict()
    return config, rename(tensors, shapes, rules)


def convert_discriminator(
    published: Mapping[str, Tensor],
) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
    """Configuration and state dict from the tensors of a published discriminator; see `convert_generator`."""
    tensors = strip_prefixes(published)
    base = shape_of(tensors, "model.0.weight")[0]
    side = shape_of(tensors, "classifier.weight")[-1]
    size = (side + 1) * 8
    assert feature_size(size) == side
    config = DiscriminatorConfig(image_size=size, base_channels=base)
    with torch.device("meta"):
        shapes = Discriminator(config).state_dict()
    return config, rename(tensors, shapes, _DISCRIMINATOR_RULES)


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefixes of wrappers in their names; only `weights.*` if these exist."""
    if any(name.startswith("weights.") for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    return {_PREFIXES.sub("", name): tensor for name, tensor in tensors.items()}


def read_generator_config(tensors: Mapping[str, Tensor], heads: int) -> GeneratorConfig:
    """Configuration of a published generator, from the names and shapes of its weights."""
    base = shape_of(tensors, _STEM)[0]
    blocks = numbered(tensors, r"encoder\.encoder_early\.downs\.(\d+)\.0\.block1\.conv\.weight")
    widths = [
        shape_of(tensors, f"encoder.encoder_early.downs.{i}.0.block1.conv.weight")[0] for i in range(blocks)
    ]
    older, newer = (numbered(tensors, rf"middle\.{name}\.(\d+)\..*") for name in ("layers", "transformer"))
    activation: Literal["silu", "gelu"] = "silu" if older else "gelu"
    tokens = shape_of(tensors, _POSITION)[1]
    try:
        return GeneratorConfig(
            image_size=math.isqrt(tokens) * 2 ** (blocks - 1),
            base_channels=base,
            channel_multipliers=tuple(width // base for width in widths),
            convolutions_per_block=2 if any(".block2." in name for name in tensors) else 1,
            transformer_layers=older or newer,
            heads=heads,
            mlp_activation=activation,
            view_embedding=any(name.startswith("middle.view_embedding.") for name in tensors),
            attention="published",
            decoder="published",
            early_fusion="published",
            residual_block="published",
            position_embedding="learned",
        )
    except ConfigError as error:
        raise CheckpointError(f"published generator: {error}; is --heads right?") from None


def rename(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """State dict with the names and shapes of `ours`, from the published tensors that `rules` name."""
    sources = {name: published_names(name, rules) for name in ours}
    wanted = {source for names in sources.values() for source in names}
    missing, unknown = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing or unknown:
        raise CheckpointError(
            f"these are not the published weights that they look like: missing {shorten(missing)}; "
            f"unknown {shorten(unknown)}"
        )
    converted = {name: torch.cat([tensors[source] for source in names]) for name, names in sources.items()}
    wrong = [
        f"{sources[name][0]} gives {tuple(tensor.shape)}, expected {tuple(ours[name].shape)}"
        for name, tensor in converted.items()
        if tensor.shape != ours[name].shape
    ]
    if wrong:
        raise CheckpointError(f"published weights of unexpected shape: {shorten(wrong)}")
    return converted


def published_names(name: str, rules: Rules) -> list[str]:
    """Published name of our tensor `name`, or several names whose tensors are concatenated."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    alternatives = re.search(r"<(.*?)>", name)
    if alternatives is None:
        return [name]
    return [name.replace(alternatives.group(0), choice) for choice in alternatives.group(1).split("|")]


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Shape of a tensor. Raises CheckpointError if it does not exist."""
    if name not in tensors:
        raise CheckpointError(
            f"no tensor {name} among {shorten(sorted(tensors))}: not the published network that this converts"
        )
    return tuple(tensors[name].shape)


def numbered(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Number of different values of the group of `pattern` among the names."""
    return len({match.group(1) for name in tensors if (match := re.fullmatch(pattern, name))})


def shorten(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    limit = 8
    if not names:
        return "none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
