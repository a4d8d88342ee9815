"""Which linear layers of a ViT an adapter works on."""

import re
from typing import Sequence

from torch import nn

# Attention and MLP of every block in timm's VisionTransformer and Eva (SwiGLU: fc1_g, fc1_x).
ATTENTION_AND_MLP = (r"attn\.(qkv|q_proj|k_proj|v_proj|proj)", r"mlp\.(fc1|fc2|fc1_g|fc1_x)")


def select_linears(vit: nn.Module, blocks: Sequence[int], targets: Sequence[str] = ATTENTION_AND_MLP) -> list[str]:
    """Names of the linear layers to adapt, such as ``blocks.8.attn.qkv``.

    Args:
        vit: a model whose Transformer blocks are in ``vit.blocks``.
        blocks: indices of the blocks to adapt, counted from 0.
        targets: regular expressions; a layer is taken when one matches its whole name within its block.

    Raises:
        ValueError: no blocks are given, a block does not exist, or a target matches no linear layer.
    """
    if len(blocks) == 0:
        raise ValueError("No block is left to adapt: freeze fewer leading blocks, or name the blocks to adapt.")
    if len(targets) == 0:
        raise ValueError(f"No layers to adapt: name at least one target, such as {list(ATTENTION_AND_MLP)}.")
    depth = len(vit.blocks)
    absent = [index for index in blocks if not 0 <= index < depth]
    if absent:
        raise ValueError(f"Blocks {absent} do not exist: this ViT has blocks 0..{depth - 1}.")

    linears = [
        (f"blocks.{index}.{name}", name)
        for index in sorted(set(blocks))
        for name, module in vit.blocks[index].named_modules()
        if isinstance(module, nn.Linear)
    ]
    for target in targets:
        if not any(re.fullmatch(target, name) for _, name in linears):
            available = sorted({name for _, name in linears})
            raise ValueError(f"Target {target!r} matches no linear layer of the blocks; they have {available}.")
    return [full for full, name in linears if any(re.fullmatch(target, name) for target in targets)]


def stacked_parts(name: str) -> int:
    """Number of weights stacked in one linear layer: 3 for a fused ``qkv``, else 1."""
    return 3 if name.rsplit(".", 1)[-1] == "qkv" else 1


def check_rank(rank: int, shape: Sequence[int]) -> None:
    """Raise a ValueError unless ``rank`` is a rank that a weight of this shape (out, in) can have."""
    if not 1 <= rank <= min(shape):
        raise ValueError(
            f"Rank {rank} is outside 1..{min(shape)}, the limits of a {shape[0]} x {shape[1]} "
            "weight (a third of it for fused qkv): choose a smaller rank."
        )


def require_called(vit: nn.Module, layers: Sequence[str], method: str) -> None:
    """Refuse layers whose weight the attention reads without calling them: an adapter around them would be passed by.

    Raises:
        ValueError: timm's EVA attention with a fused qkv and separate biases is among the layers.
    """
    for name in layers:
        attention = vit.get_submodule(name.rpartition(".")[0])
        if name.endswith(".qkv") and getattr(attention, "q_bias", None) is not None:
            raise ValueError(
                f"{method} cannot adapt {name}: this ViT's attention reads its weight directly. Leave qkv out of "
                "MODEL.ADAPTER.TARGETS, or choose 'soma' or 'lora', which compose the weight."
            )


def parameter_names(vit: nn.Module, layers: Sequence[str], parts: Sequence[str], bias: bool) -> list[str]:
    """Names of the given parameters of each layer and, if wanted and there is one, of its bias."""
    names = [f"{layer}.{part}" for layer in layers for part in parts]
    if bias:
        names += [f"{layer}.bias" for layer in layers if vit.get_submodule(layer).bias is not None]
    return names


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule of ``root`` that has the dotted ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
