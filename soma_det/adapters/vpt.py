"""Visual prompt tuning, deep: new trained tokens in every adapted block, dropped after it.

Source: Visual Prompt Tuning, arXiv 2203.12119, section 3.2 (VPT-deep):

    [x_i, _, E_i] = block_i([x_{i-1}, P_{i-1}, E_{i-1}]),

with prefix tokens x, prompts P ~ U(-v, v), v^2 = 6 / (3 patch^2 + d), and patch tokens E.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soma_det.adapters.base import AdapterConfig, AdapterLayer, Blocks, register, require
from soma_det.adapters.selection import describe_plain_vit, select_blocks, wrap_blocks


@register
@dataclass(frozen=True)
class VptConfig(AdapterConfig):
    """Visual prompt tuning, deep, with ``tokens`` prompts for each block."""

    name = "vpt"
    summary = "more tokens in every block (visual prompt tuning, deep)"
    why_not_mergeable = "its prompts are more tokens for the attention, which no weight of a plain ViT can stand for."

    tokens: int = 50

    def __post_init__(self):
        require(self.tokens >= 1, f"MODEL.ADAPTER.VPT.TOKENS is {self.tokens}: give at least 1.")

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        dim, prefix, patch = describe_plain_vit(model, "Visual prompt tuning")
        for name in select_blocks(model, blocks):
            attention = getattr(model.get_submodule(name), "attn", None)
            table = getattr(attention, "relative_position_bias_table", None)
            require(table is None, f"vpt cannot adapt {name}: its relative positions have no room for prompts.")
        bound = math.sqrt(6 / (3 * patch**2 + dim))
        names = wrap_blocks(model, blocks, lambda block: PromptedBlock(block, self, dim, prefix, bound))
        return [f"{name}.prompt" for name in names]


class PromptedBlock(AdapterLayer):
    """A Transformer block that sees more, trained tokens; from outside it looks like the block alone."""

    def __init__(self, block: Any, config: VptConfig, dim: int, prefix: int, bound: float):
        super().__init__()
        self.config, self.block, self.prefix = config, block, prefix
        tokens = config.tokens
        self.prompt = nn.Parameter(torch.empty(1, tokens, dim).uniform_(-bound, bound))
        attention = getattr(block, "attn", None)
        # Rotary attention leaves these tokens without a position.
        if attention is not None and hasattr(attention, "num_prefix_tokens"):
            attention.num_prefix_tokens += tokens

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, L, C) -> (N, L, C)"""
        before, after = x[:, : self.prefix], x[:, self.prefix :]
        x = self.block(torch.cat([before, self.prompt.expand(len(x), -1, -1), after], dim=1), *args, **kwargs)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + self.prompt.shape[1] :]], dim=1)
