"""Which blocks and which linear layers of a model a method works on."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from timm.layers import GluMlp
from torch import nn

# Attention and MLP of every block in timm's VisionTransformer, Eva (SwiGLU: fc1_g, fc1_x), Swin, ConvNeXt, Hiera.
ATTENTION_AND_MLP = (r"attn\.(qkv|q_proj|k_proj|v_proj|proj)", r"mlp\.(fc1|fc2|fc1_g|fc1_x)")
PLAIN_VIT = ("blocks", "embed_dim", "num_prefix_tokens", "patch_embed")  # attributes of timm's plain ViTs


def find_blocks(model: nn.Module) -> list[str]:
    """Names of a model's blocks in order: the members of each container called "blocks".

    ``blocks.0`` and so on in plain ViTs and Hiera, ``layers.0.blocks.0`` in Swin, ``stages.0.blocks.0`` in ConvNeXt.
    Containers within a block do not count. Empty for a model that has none.
    """
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in names)
        if name.rpartition(".")[2] == "blocks" and isinstance(module, (nn.ModuleList, nn.Sequential)) and not inside:
            names += [f"{name}.{index}" for index in range(len(module))]
    return names


def select_blocks(model: nn.Module, blocks: Sequence[int] | None) -> list[str]:
    """Names of the blocks with these indices, in order.

    Raises:
        ValueError: no index is given, or one is outside the model's blocks.
    """
    names = find_blocks(model)
    if blocks is None:
        raise ValueError(
            f"{type(model).__name__} has no blocks: choose a method that adapts linear layers, and targets."
        )
    if len(blocks) == 0:
        raise ValueError("No block is left to adapt: freeze fewer leading blocks, or name the blocks to adapt.")
    absent = [index for index in blocks if not 0 <= index < len(names)]
    if absent:
        raise ValueError(f"Blocks {absent} do not exist: this model has blocks 0..{len(names) - 1}.")
    return [names[index] for index in sorted(set(blocks))]


def select_linears(
    model: nn.Module, blocks: Sequence[int] | None, targets: Sequence[str] = ATTENTION_AND_MLP
) -> list[str]:
    """Names of the linear layers to adapt, such as ``blocks.8.attn.qkv``.

    Args:
        blocks: indices into :func:`find_blocks`; None for a model without blocks.
        targets: regular expressions. A layer is taken when one matches its whole name within its block, or within the
            model where there are no blocks.

    Raises:
        ValueError: no block or target is given, a block does not exist, or a target matches no linear layer.
    """
    if len(targets) == 0:
        raise ValueError(f"No layers to adapt: name at least one target, such as {list(ATTENTION_AND_MLP)}.")
    roots = [""] if blocks is None else [f"{name}." for name in select_blocks(model, blocks)]
    linears = [
        (f"{root}{name}", name)
        for root in roots
        for name, module in model.get_submodule(root.rstrip(".")).named_modules()
        if isinstance(module, nn.Linear)
    ]
    missing = [target for target in targets if not any(re.fullmatch(target, name) for _, name in linears)]
    # The usual targets cover several kinds of models, of which each has some; one that was set has to be there.
    if missing and (tuple(targets) != ATTENTION_AND_MLP or len(missing) == len(targets)):
        available = sorted({name for _, name in linears}) or "none"
        raise ValueError(f"Target {missing[0]!r} matches no linear layer; there are {available}. Set the targets.")
    return [full for full, name in linears if any(re.fullmatch(target, name) for target in targets)]


def get_linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of this name.

    Raises:
        ValueError: there is none.
    """
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear layer {name}: it is another architecture.")
    return layer


def stacked_parts(model: nn.Module, name: str) -> int:
    """Number of weights stacked in the linear layer of this name: q, k and v, or gate and value, or just one."""
    parent_name, _, child = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if child == "qkv":
        # The attention of TinyViT and LeViT stacks q, k and v of one head after the other's, not of all heads.
        return 1 if hasattr(parent, "key_dim") else 3
    return 2 if child == "fc1" and isinstance(parent, GluMlp) else 1


def check_rank(rank: int, shape: Sequence[int]) -> None:
    """Raise a ValueError unless ``rank`` is a rank that a weight of this shape (out, in) can have."""
    if not 1 <= rank <= min(shape):
        raise ValueError(
            f"Rank {rank} is outside 1..{min(shape)}, the limits of a {shape[0]} x {shape[1]} weight (a third of it "
            "for fused qkv): choose a smaller rank."
        )


def check_ranks(model: nn.Module, layers: Sequence[str], rank: int) -> None:
    """:func:`check_rank` for each part of each layer."""
    for name in layers:
        weight = get_linear(model, name).weight
        check_rank(rank, (weight.shape[0] // stacked_parts(model, name), weight.shape[1]))


def is_read_directly(model: nn.Module, name: str) -> bool:
    """Whether the attention reads this layer's weight without calling it: a fused qkv with separate biases."""
    return name.endswith(".qkv") and getattr(model.get_submodule(name.rpartition(".")[0]), "q_bias", None) is not None


def require_called(model: nn.Module, layers: Sequence[str], method: str) -> None:
    """Refuse layers whose weight the attention reads without calling them: a module in their place would be bypassed.

    Raises:
        ValueError: an attention with a fused qkv and separate biases (EVA, BEiT, Swin V2) is among the layers.
    """
    for name in layers:
        if is_read_directly(model, name):
            raise ValueError(
                f"{method} cannot adapt {name}: this attention reads its weight directly. Leave qkv out of the targets "
                "(MODEL.ADAPTER.TARGETS), or choose 'soma' or 'lora', which compose the weight."
            )


class PlainVit(NamedTuple):
    """The sizes of a plain ViT: channels of a token, number of tokens before the patches, pixels of a patch."""

    width: int
    prefix_tokens: int
    patch_size: int


def describe_plain_vit(model: Any, method: str) -> PlainVit:
    """The sizes of one of timm's plain ViTs, whose blocks map tokens to tokens.

    Raises:
        ValueError: the model is not one.
    """
    missing = [attribute for attribute in PLAIN_VIT if not hasattr(model, attribute)]
    if missing:
        raise ValueError(
            f"{method} needs a plain ViT of timm, and {type(model).__name__} has no {missing}: choose a method that "
            "adapts linear layers, such as 'soma' or 'lora'."
        )
    return PlainVit(model.embed_dim, model.num_prefix_tokens, model.patch_embed.patch_size[0])


def wrap_blocks(vit: nn.Module, blocks: Sequence[int] | None, wrap: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Replace each of these blocks by ``wrap(block)``, in place; returns their names."""
    names = select_blocks(vit, blocks)
    for name in names:
        replace_module(vit, name, wrap(vit.get_submodule(name)))
    return names


def parameter_names(model: nn.Module, layers: Sequence[str], parts: Sequence[str], bias: bool) -> list[str]:
    """Names of the given parameters of each layer and, if wanted and there is one, of its bias."""
    names = [f"{layer}.{part}" for layer in layers for part in parts]
    if bias:
        names += [f"{layer}.bias" for layer in layers if getattr(model.get_submodule(layer), "bias", None) is not None]
    return names


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule of ``root`` that has the dotted ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
