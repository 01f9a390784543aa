"""A transformer over image patches in the manner of today's language models: RMSNorm before each sublayer, RMSNorm on
queries and keys, a gated feed-forward layer.

Its positions are learned for the sixteen patches of an 8x8 scan, so only the batch size is left open on export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel


class Attention(nn.Module):
    """Multi-head self-attention with RMSNorm on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(width // heads)
        self.key_norm = nn.RMSNorm(width // heads)
        self.merge = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        merged: Tensor = self.merge(y.transpose(1, 2).flatten(2))
        return merged


class FeedForward(nn.Module):
    """The gated feed-forward layer, SiLU(gate(x)) * up(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.feed_forward_norm = nn.RMSNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return y


class RMSNormTransformer(nn.Module):
    """Patches of 2x2 pixels, after a 3x3 convolution that looks around them, then layers, average, classifier."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2, patches: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, width // 2, 3, padding=1), nn.GELU(), nn.Conv2d(width // 2, width, 2, stride=2)
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = self.norm(self.layers(x)).mean(dim=1)
        logits: Tensor = self.classify(x)
        return logits


MODEL = ReferenceModel(
    name="rms_norm_transformer",
    title="RMSNorm transformer",
    summary="A small vision transformer built like today's language models: RMSNorm before each sublayer and on "
    "queries and keys. An ordinary export writes each as a handful of elementary operators; here each stays one.",
    factory=RMSNormTransformer,
    norms=("RMSNorm before each sublayer", "RMSNorm on queries and keys"),
    norms_left=9,
    epochs=14,
    learning_rate=5e-3,
)
