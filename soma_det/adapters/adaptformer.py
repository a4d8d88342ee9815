"""AdaptFormer: a small trained bottleneck beside each MLP.

Source: AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, arXiv 2205.13535, section 3.2:

    MLP(z) + s ReLU(z W_down + b_down) W_up + b_up,   z = LN(x),   s = 0.1, W_up = 0, biases 0,

with the scale on the whole bottleneck branch. In a ViT with LayerScale the sum is inside of it, as the MLP is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from soma_det.adapters.base import AdapterConfig, AdapterLayer, Blocks, register, require
from soma_det.adapters.selection import describe_plain_vit, replace_module, select_blocks

SCALE = 0.1


@register
@dataclass(frozen=True)
class AdaptFormerConfig(AdapterConfig):
    """AdaptFormer with bottlenecks of ``width`` features."""

    name = "adaptformer"
    summary = "a small bottleneck beside every MLP (AdaptFormer)"
    why_not_mergeable = "its bottleneck has a ReLU of its own, so it is no part of the MLP's weights."

    width: int = 64

    def __post_init__(self):
        require(self.width >= 1, f"MODEL.ADAPTER.ADAPTFORMER.WIDTH is {self.width}: give at least 1.")

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        width = describe_plain_vit(model, "AdaptFormer").width
        blocks_with_mlp = select_blocks(model, blocks)
        for name in blocks_with_mlp:
            require(
                hasattr(model.get_submodule(name), "mlp"),
                f"{name} of this ViT has no .mlp beside which a bottleneck could stand: adapt other blocks.",
            )
        layers = [f"{name}.mlp" for name in blocks_with_mlp]
        for name in layers:
            replace_module(model, name, ParallelBottleneck(model.get_submodule(name), width, self))
        parts = ("down.weight", "down.bias", "up.weight", "up.bias")
        return [f"{layer}.{part}" for layer in layers for part in parts]


class ParallelBottleneck(AdapterLayer):
    """An MLP with a bottleneck beside it; at the start the bottleneck adds nothing."""

    def __init__(self, mlp: nn.Module, dim: int, config: AdaptFormerConfig):
        super().__init__()
        self.config, self.mlp = config, mlp
        width = config.width
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return self.mlp(x) + SCALE * self.up(F.relu(self.down(x)))
