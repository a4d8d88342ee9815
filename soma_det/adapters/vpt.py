"""Visual prompt tuning, deep: new trained tokens in every adapted block, dropped after it.

Source: Visual Prompt Tuning, arXiv 2203.12119, section 3.2 (VPT-deep):

    [x_i, _, E_i] = block_i([x_{i-1}, P_{i-1}, E_{i-1}]),

with prefix tokens x, prompts P ~ U(-v, v), v^2 = 6 / (3 patch^2 + d), and patch tokens E.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soma_det.adapters.base import AdapterConfig, AdapterLayer, register, require
from soma_det.adapters.selection import require_plain_vit, wrap_blocks


WHY_NOT_MERGEABLE = "its prompts are more tokens for the attention, which no weight of a plain ViT can stand for."


@register
@dataclass(frozen=True)
class VptConfig(AdapterConfig):
    """Visual prompt tuning, deep.

    Attributes:
        tokens: prompts for each block.
    """

    name = "vpt"
    summary = "more tokens in every block (visual prompt tuning, deep)"
    why_not_mergeable = WHY_NOT_MERGEABLE

    tokens: int = 50

    def __post_init__(self):
        require(self.tokens >= 1, f"MODEL.ADAPTER.VPT.TOKENS is {self.tokens}: give at least 1.")

    def inject(self, model: nn.Module, blocks: Sequence[int], targets: Sequence[str], initialize: bool) -> list[str]:
        require_plain_vit(model, "Visual prompt tuning")
        dim, prefix = model.embed_dim, model.num_prefix_tokens
        bound = math.sqrt(6 / (3 * model.patch_embed.patch_size[0] ** 2 + dim))
        names = wrap_blocks(model, blocks, lambda block: PromptedBlock(block, self, dim, prefix, bound))
        return [f"{name}.prompt" for name in names]


class PromptedBlock(AdapterLayer):
    """A Transformer block that sees more, trained tokens; from outside it looks like the block alone."""

    why_not_mergeable = WHY_NOT_MERGEABLE

    def __init__(self, block: nn.Module, config: VptConfig, dim: int, prefix: int, bound: float):
        super().__init__()
        self._config, self.block, self.prefix = config, block, prefix
        tokens = config.tokens
        self.prompt = nn.Parameter(torch.empty(1, tokens, dim).uniform_(-bound, bound))
        if hasattr(block.attn, "num_prefix_tokens"):  # rotary attention leaves these tokens without a position
            block.attn.num_prefix_tokens += tokens

    @property
    def config(self) -> VptConfig:
        """The settings with which the layer was made."""
        return self._config

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """(N, L, C) -> (N, L, C)"""
        before, after = x[:, : self.prefix], x[:, self.prefix :]
        x = self.block(torch.cat([before, self.prompt.expand(len(x), -1, -1), after], dim=1), *args, **kwargs)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + self.prompt.shape[1] :]], dim=1)
