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
from typing import Sequence

import torch
from torch import Tensor, nn

from soma_det.adapters.registry import Adapter, register_adapter
from soma_det.adapters.wrapping import wrap_blocks


class SharedRefinement(nn.Module):
    """What all blocks share: the layers MLP_T and MLP_f, and the scale."""

    def __init__(self, dim: int):
        super().__init__()
        self.token_to_feature, self.refine = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.tensor(0.001))


class ReinBlock(nn.Module):
    """A Transformer block whose patch tokens are refined by trained tokens."""

    def __init__(self, block: nn.Module, shared: SharedRefinement, tokens: int, rank: int, prefix: int, bound: float):
        super().__init__()
        self.block, self.prefix = block, prefix
        self._shared = (shared,)  # in a tuple, so that its parameters belong to the ViT alone
        dim = shared.refine.in_features
        self.tokens_a = nn.Parameter(torch.empty(tokens, rank).uniform_(-bound, bound))
        self.tokens_b = nn.Parameter(torch.empty(rank, dim).uniform_(-bound, bound))

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(N, L, C) -> (N, L, C)"""
        (shared,) = self._shared
        x = self.block(x, *args, **kwargs)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        tokens = self.tokens_a @ self.tokens_b  # (tokens, C)
        similarity = (patches @ tokens.T / math.sqrt(patches.shape[-1])).softmax(-1)  # (N, patches, tokens)
        change = similarity[..., 1:] @ shared.token_to_feature(tokens[1:])  # (N, patches, C)
        patches = patches + shared.scale * shared.refine(change + patches)
        return torch.cat([prefix, patches], dim=1)


def inject_rein(vit: nn.Module, blocks: Sequence[int], tokens: int = 100, rank: int = 16) -> list[str]:
    """Refine the output of each of the blocks, in place, and return the names of what trains.

    Args:
        tokens: for each block.
        rank: of each block's tokens.

    Raises:
        ValueError: a wrong number of tokens, rank, or block.
    """
    limit = min(tokens, vit.embed_dim)
    if tokens < 2:
        raise ValueError(f"MODEL.ADAPTER.REIN.TOKENS is {tokens}: give at least 2, since the first refines nothing.")
    if not 1 <= rank <= limit:
        raise ValueError(f"Rank {rank} is outside 1..{limit}, the limits of {tokens} tokens: choose a smaller rank.")
    shared = SharedRefinement(vit.embed_dim)
    prefix = vit.num_prefix_tokens
    bound = math.sqrt(6 / (3 * vit.patch_embed.patch_size[0] ** 2 + math.sqrt(vit.embed_dim * rank)))
    wrap_blocks(vit, blocks, lambda block: ReinBlock(block, shared, tokens, rank, prefix, bound))
    vit.rein = shared
    own = [f"blocks.{index}.{part}" for index in sorted(set(blocks)) for part in ("tokens_a", "tokens_b")]
    return own + [f"rein.{name}" for name, _ in shared.named_parameters()]


register_adapter(
    Adapter(
        "rein",
        "tokens that refine the feature map after every block (Rein)",
        inject_rein,
        options=("blocks", "tokens", "rank"),
        why_not_mergeable="its refinement after each block attends from patches to trained tokens, as no plain block does.",
    )
)
