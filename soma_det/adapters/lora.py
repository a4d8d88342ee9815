"""LoRA: a trained low-rank change beside each pretrained weight, with fused qkv adapted as three weights.

Source: LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685, section 4.1:

    y = x (W + B A)^T + bias,   A ~ Kaiming uniform, B = 0,

at a scale of 1 (alpha = rank), as SoMA. At the start that is exactly the pretrained layer.
"""

import math
from functools import partial
from typing import Sequence

from torch import nn

from soma_det.adapters.registry import Adapter, register_adapter
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    check_rank,
    parameter_names,
    replace_module,
    select_linears,
    stacked_parts,
)
from soma_det.adapters.soma import ComposedLinear, merge_composed


class LoraLinear(ComposedLinear):
    """A linear layer with a low-rank change; what SoMA's residual is there is the whole pretrained weight here."""

    def __init__(self, linear: nn.Linear, rank: int, parts: int = 1):
        a = linear.weight.new_empty(parts, rank, linear.in_features)
        for part in a:  # the fan of a stack would be counted over all of its weights
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
        b = linear.weight.new_zeros(parts, linear.out_features // parts, rank)
        super().__init__(linear, linear.weight.detach(), a, b)


def inject_lora(
    vit: nn.Module,
    blocks: Sequence[int],
    rank: int = 16,
    targets: Sequence[str] = ATTENTION_AND_MLP,
    train_bias: bool = True,
) -> list[str]:
    """Replace linear layers of a ViT by :class:`LoraLinear`, in place, and return the names of what trains.

    Raises:
        ValueError: a wrong rank, block or target; the model is left as it was.
    """
    layers = select_linears(vit, blocks, targets)
    for name in layers:
        check_rank(rank, vit.get_submodule(name).weight.chunk(stacked_parts(name))[0].shape)
    for name in layers:
        replace_module(vit, name, LoraLinear(vit.get_submodule(name), rank, stacked_parts(name)))
    return parameter_names(vit, layers, ("a", "b"), train_bias)


register_adapter(
    Adapter(
        "lora",
        "a low-rank change beside each weight (LoRA), fused qkv as three weights",
        inject_lora,
        options=("blocks", "rank", "targets", "train_bias"),
        merge=partial(merge_composed, kind=LoraLinear),
    )
)
