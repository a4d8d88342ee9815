"""LoRA: a trained low-rank change beside each pretrained weight, with fused qkv adapted as three weights.

Source: LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685, section 4.1:
y = x (W + B A)^T + bias, A ~ Kaiming uniform, B = 0, at a scale of 1 (alpha = rank), as SoMA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from soma_det.adapters.base import Blocks, LowRankConfig, register
from soma_det.adapters.composed import ComposedLinear
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    check_ranks,
    get_linear,
    parameter_names,
    replace_module,
    select_linears,
    stacked_parts,
)


@register
@dataclass(frozen=True)
class LoraConfig(LowRankConfig):
    """LoRA; the rank is that of each part of a stacked weight."""

    name = "lora"
    summary = "a low-rank change beside each weight (LoRA), fused qkv as three weights"

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        names = select_linears(model, blocks, targets or ATTENTION_AND_MLP)
        check_ranks(model, names, self.rank)
        for name in names:
            layer = LoraLinear(get_linear(model, name), self.rank, stacked_parts(model, name))
            replace_module(model, name, layer)
        return parameter_names(model, names, ("a", "b"), self.train_bias)


class LoraLinear(ComposedLinear):
    """A linear layer with a low-rank change; what SoMA's residual is there is the whole pretrained weight here."""

    def __init__(self, linear: nn.Linear, rank: int, parts: int = 1):
        a = linear.weight.new_empty(parts, rank, linear.in_features)
        for part in a:  # the fan of a stack would be counted over all of its weights
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        b = linear.weight.new_zeros(parts, linear.out_features // parts, rank)
        super().__init__(linear, linear.weight.detach(), a, b)
        self.config = LoraConfig(rank=rank)

    @classmethod
    def with_change(cls, linear: nn.Linear, a: Tensor, b: Tensor) -> "LoraLinear":
        """The layer with a given change: a (parts, rank, in), b (parts, out / parts, rank)."""
        layer = cls.__new__(cls)
        ComposedLinear.__init__(layer, linear, linear.weight.detach(), a, b)
        layer.config = LoraConfig(rank=a.shape[1])
        return layer
