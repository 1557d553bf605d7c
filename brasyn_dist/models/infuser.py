"""Modality infuser: a transformer at the bottleneck, conditioned on target modality and view.

(B, C, h, w) --> h * w tokens + position + target (+ view) embeddings --> pre-norm blocks --> (B, C, h, w)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brasyn_dist.brats import image_shape
from brasyn_dist.config import GeneratorConfig

NORM_EPS = 1e-6
MLP_RATIO = 4


def sinusoidal(index_B: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """(B, width) sines, then cosines, of the index at `width / 2` frequencies from 1 down to 1 / 10000."""
    half = width // 2
    # Computed, not stored: a buffer would lose precision when the module is converted to another dtype.
    exponent = torch.arange(half, device=index_B.device, dtype=dtype) * (-math.log(10000.0) / (half - 1))
    angle_BF = index_B.to(dtype)[:, None] * torch.exp(exponent)
    return torch.cat([torch.sin(angle_BF), torch.cos(angle_BF)], dim=1)


class IndexEmbedding(nn.Module):
    """Sinusoid of an index (a modality, a view), linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(self, index_B: Tensor) -> Tensor:
        """Embedding (B, width) of indices (B,)."""
        sinusoid_BW = sinusoidal(index_B, self.expand.in_features, self.expand.weight.dtype)
        return self.project(F.silu(self.expand(sinusoid_BW)))


class TransformerBlock(nn.Module):
    """x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x))."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.activation = F.silu if activation == "silu" else F.gelu
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_expand = nn.Linear(width, MLP_RATIO * width)
        self.mlp_project = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens_BTW: Tensor) -> Tensor:
        """Tokens (B, T, width) to tokens of the same shape."""
        tokens_BTW = tokens_BTW + self._attend(self.attention_norm(tokens_BTW))
        hidden = self.activation(self.mlp_expand(self.mlp_norm(tokens_BTW)))
        return tokens_BTW + self.mlp_project(hidden)

    def _attend(self, tokens_BTW: Tensor) -> Tensor:
        split = self.query_key_value(tokens_BTW).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed_BHTD = F.scaled_dot_product_attention(query, key, value)
        return self.attention_output(mixed_BHTD.transpose(1, 2).flatten(2))


class ModalityInfuser(nn.Module):
    """Transforms the fused bottleneck into features of the target modality."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width, halvings = config.width, len(config.channel_multipliers) - 1
        self.tokens = math.prod(side >> halvings for side in image_shape(config.image_size))
        self.projection = nn.Conv2d(width, width, 1)
        self.position_1TW: nn.Parameter | None = None
        if config.position_embedding == "learned":
            self.position_1TW = nn.Parameter(torch.randn(1, self.tokens, width) * 0.02)
        self.target_embedding = IndexEmbedding(width)
        self.view_embedding = IndexEmbedding(width) if config.view_embedding else None
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.heads, config.mlp_activation)
            for _ in range(config.transformer_layers)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_BCHW: Tensor, target_B: Tensor, view_B: Tensor | None) -> Tensor:
        """Features (B, C, h, w) from the fused bottleneck, target modality and view (B,) int64."""
        tokens_BTW = self.projection(x_BCHW).flatten(2).transpose(1, 2) + self._positions()
        tokens_BTW = tokens_BTW + self._condition(target_B, view_B)[:, None]
        for block in self.blocks:
            tokens_BTW = block(tokens_BTW)
        return self.norm(tokens_BTW).transpose(1, 2).unflatten(2, x_BCHW.shape[2:])

    def _positions(self) -> Tensor:
        """(1, T, W) position embedding."""
        if self.position_1TW is not None:
            return self.position_1TW
        weight = self.norm.weight
        numbers_T = torch.arange(self.tokens, device=weight.device)
        return sinusoidal(numbers_T, weight.shape[0], weight.dtype)[None]

    def _condition(self, target_B: Tensor, view_B: Tensor | None) -> Tensor:
        condition_BW = self.target_embedding(target_B)
        if self.view_embedding is None:
            return condition_BW
        if view_B is None:
            raise ValueError(
                "this generator has a view embedding: pass view_B (0 axial, 1 sagittal, 2 coronal)"
            )
        return condition_BW + self.view_embedding(view_B)
