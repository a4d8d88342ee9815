"""AdaptFormer: a small trained bottleneck beside each MLP.

Source: AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, arXiv 2205.13535, section 3.2:

    MLP(z) + s ReLU(z W_down + b_down) W_up + b_up,   z = LN(x),   s = 0.1, W_up = 0, biases 0,

with the scale on the whole bottleneck branch. In a ViT with LayerScale the sum is inside of it, as the MLP is.
"""

import math
from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from soma_det.adapters.registry import Adapter, register_adapter
from soma_det.adapters.wrapping import require_blocks

SCALE = 0.1


class ParallelBottleneck(nn.Module):
    """An MLP with a bottleneck beside it; at the start the bottleneck adds nothing."""

    def __init__(self, mlp: nn.Module, dim: int, width: int):
        super().__init__()
        self.mlp = mlp
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return self.mlp(x) + SCALE * self.up(F.relu(self.down(x)))


def inject_adaptformer(vit: nn.Module, blocks: Sequence[int], width: int = 64) -> list[str]:
    """Put a bottleneck of ``width`` features beside the MLP of each block, in place; returns the names of what trains.

    Raises:
        ValueError: a wrong width or block, or blocks without an MLP of their own.
    """
    require_blocks(vit, blocks)
    if width < 1:
        raise ValueError(f"MODEL.ADAPTER.ADAPTFORMER.WIDTH is {width}: give at least 1.")
    for index in blocks:
        if not hasattr(vit.blocks[index], "mlp"):
            raise ValueError(f"Block {index} of this ViT has no .mlp beside which a bottleneck could stand.")
    blocks = sorted(set(blocks))
    for index in blocks:
        block = vit.blocks[index]
        block.mlp = ParallelBottleneck(block.mlp, vit.embed_dim, width)
    parts = ("down.weight", "down.bias", "up.weight", "up.bias")
    return [f"blocks.{index}.mlp.{part}" for index in blocks for part in parts]


register_adapter(
    Adapter(
        "adaptformer",
        "a small bottleneck beside every MLP (AdaptFormer)",
        inject_adaptformer,
        options=("blocks", "width"),
        why_not_mergeable="its bottleneck has a ReLU of its own, so it is no part of the MLP's weights.",
    )
)
