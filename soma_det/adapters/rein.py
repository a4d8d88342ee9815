"""Rein: trained tokens that refine the feature map between blocks.

Source: Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain Generalized Semantic Segmentation,
CVPR 2024, arXiv 2312.04265, section 3.2, with the starting values of its public code (w1oves/Rein). After each adapted
block with patch tokens f,

    T = A B,                              100 tokens of low rank, a pair A, B for each block
    S = softmax(f T^T / sqrt(d)),
    f <- f + s MLP_f(S[:, 2:] MLP_T(T[2:]) + f),

with two linear layers MLP_T and MLP_f and a scale s = 0.001 shared by all blocks. The first token only takes attention
away. At the start the outputs are nearly the pretrained ones. Rein's link from the tokens to the queries of a
segmentation head has no place in a detector without queries and is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soma_det.adapters.base import AdapterConfig, AdapterLayer, Blocks, register, require
from soma_det.adapters.selection import describe_plain_vit, wrap_blocks


@register
@dataclass(frozen=True)
class ReinConfig(AdapterConfig):
    """Rein with two or more ``tokens`` of low ``rank`` for each block."""

    name = "rein"
    summary = "tokens that refine the feature map after every block (Rein)"
    why_not_mergeable = (
        "its refinement after each block attends from patches to trained tokens, as no plain block does."
    )

    tokens: int = 100
    rank: int = 16

    def __post_init__(self):
        require(
            self.tokens >= 2,
            f"MODEL.ADAPTER.REIN.TOKENS is {self.tokens}: give at least 2, since the first refines nothing.",
        )

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        dim, prefix, patch = describe_plain_vit(model, "Rein")
        limit = min(self.tokens, dim)
        require(
            1 <= self.rank <= limit,
            f"Rank {self.rank} is outside 1..{limit}, the limits of {self.tokens} tokens: choose a smaller rank.",
        )
        shared = SharedRefinement(dim)
        bound = math.sqrt(6 / (3 * patch**2 + math.sqrt(dim * self.rank)))
        names = wrap_blocks(model, blocks, lambda block: ReinBlock(block, shared, self, prefix, bound))
        model.rein = shared
        own = [f"{name}.{part}" for name in names for part in ("tokens_a", "tokens_b")]
        return own + [f"rein.{name}" for name, _ in shared.named_parameters()]


class SharedRefinement(nn.Module):
    """What all blocks share: the layers MLP_T and MLP_f, and the scale."""

    def __init__(self, dim: int):
        super().__init__()
        self.token_to_feature, self.refine = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.tensor(0.001))


class ReinBlock(AdapterLayer):
    """A Transformer block whose patch tokens are refined by trained tokens."""

    def __init__(self, block: nn.Module, shared: SharedRefinement, config: ReinConfig, prefix: int, bound: float):
        super().__init__()
        self.config, self.block, self.prefix = config, block, prefix
        self._shared = (shared,)  # in a tuple, so that its parameters belong to the ViT alone
        dim = shared.refine.in_features
        self.tokens_a = nn.Parameter(torch.empty(config.tokens, config.rank).uniform_(-bound, bound))
        self.tokens_b = nn.Parameter(torch.empty(config.rank, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, L, C) -> (N, L, C)"""
        (shared,) = self._shared
        x = self.block(x, *args, **kwargs)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        tokens = self.tokens_a @ self.tokens_b  # (tokens, C)
        similarity = (patches @ tokens.T / math.sqrt(patches.shape[-1])).softmax(-1)  # (N, patches, tokens)
        change = similarity[..., 1:] @ shared.token_to_feature(tokens[1:])  # (N, patches, C)
        patches = patches + shared.scale * shared.refine(change + patches)
        return torch.cat([prefix, patches], dim=1)
