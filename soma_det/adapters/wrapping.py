"""Putting a module around a Transformer block."""

from typing import Callable, Sequence

from torch import nn


def wrap_blocks(vit: nn.Module, blocks: Sequence[int], wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Replace ``vit.blocks[i]`` by ``wrap(vit.blocks[i])`` for each of the blocks.

    Raises:
        ValueError: no blocks are given or one does not exist; the model is left as it was.
    """
    require_blocks(vit, blocks)
    for index in sorted(set(blocks)):
        vit.blocks[index] = wrap(vit.blocks[index])


def require_blocks(vit: nn.Module, blocks: Sequence[int]) -> None:
    """Raise a ValueError unless there is at least one block and all of them exist."""
    if len(blocks) == 0:
        raise ValueError("No block is left to adapt: freeze fewer leading blocks, or name the blocks to adapt.")
    absent = [index for index in blocks if not 0 <= index < len(vit.blocks)]
    if absent:
        raise ValueError(f"Blocks {absent} do not exist: this ViT has blocks 0..{len(vit.blocks) - 1}.")
