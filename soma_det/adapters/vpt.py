"""Visual prompt tuning, deep: new trained tokens in every adapted block, dropped after it.

Source: Visual Prompt Tuning, arXiv 2203.12119, section 3.2 (VPT-deep):

    [x_i, _, E_i] = block_i([x_{i-1}, P_{i-1}, E_{i-1}]),

with prefix tokens x, prompts P ~ U(-v, v), v^2 = 6 / (3 patch^2 + d), and patch tokens E.
"""

import math
from typing import Sequence

import torch
from torch import Tensor, nn

from soma_det.adapters.registry import Adapter, register_adapter
from soma_det.adapters.wrapping import wrap_blocks


class PromptedBlock(nn.Module):
    """A Transformer block that sees further, trained tokens; from outside it looks like the block alone."""

    def __init__(self, block: nn.Module, tokens: int, dim: int, prefix: int, bound: float):
        super().__init__()
        self.block, self.prefix = block, prefix
        self.prompt = nn.Parameter(torch.empty(1, tokens, dim).uniform_(-bound, bound))
        if hasattr(block.attn, "num_prefix_tokens"):  # rotary attention leaves these tokens without a position
            block.attn.num_prefix_tokens += tokens

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(N, L, C) -> (N, L, C)"""
        before, after = x[:, : self.prefix], x[:, self.prefix :]
        x = self.block(torch.cat([before, self.prompt.expand(len(x), -1, -1), after], dim=1), *args, **kwargs)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + self.prompt.shape[1] :]], dim=1)


def inject_vpt(vit: nn.Module, blocks: Sequence[int], tokens: int = 50) -> list[str]:
    """Give each of the blocks its own ``tokens`` prompts, in place, and return the names of what trains.

    Raises:
        ValueError: a wrong number of tokens, or block.
    """
    if tokens < 1:
        raise ValueError(f"MODEL.ADAPTER.VPT.TOKENS is {tokens}: give at least 1.")
    bound = math.sqrt(6 / (3 * vit.patch_embed.patch_size[0] ** 2 + vit.embed_dim))
    wrap_blocks(vit, blocks, lambda block: PromptedBlock(block, tokens, vit.embed_dim, vit.num_prefix_tokens, bound))
    return [f"blocks.{index}.prompt" for index in sorted(set(blocks))]


register_adapter(
    Adapter(
        "vpt",
        "further tokens in every block (visual prompt tuning, deep)",
        inject_vpt,
        options=("blocks", "tokens"),
        why_not_mergeable="its prompts are further tokens of the attention, which no weight of a plain ViT can stand for.",
    )
)
