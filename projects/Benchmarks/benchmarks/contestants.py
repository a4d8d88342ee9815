"""Ways to adapt a ViT, all on the same layers and at the same rank."""

import importlib.util
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soma_det.adapters import ADAPTERS
from soma_det.adapters import adapt as adapt_model
from soma_det.adapters.selection import replace_module, select_linears
from soma_det.adapters.soma import SomaLinear

SIZES = {
    "ti": "vit_tiny_patch16_224",
    "s": "vit_small_patch16_224",
    "b": "vit_base_patch16_224",
    "l": "vit_large_patch16_224",
}
FLOOR, SOMA, PEFT_LORA = "biases", "soma", "peft_lora"
CONTESTANTS = (FLOOR, "frozen", SOMA, "two_branch", PEFT_LORA, "pissa", "full")
NEED_PEFT = (PEFT_LORA, "pissa")


class TwoBranchLinear(nn.Module):
    """SoMA computed as its formula reads: y = x W_res^T + (x A^T) B^T + bias."""

    def __init__(self, layer: SomaLinear):
        super().__init__()
        self.residual, self.a, self.b, self.bias = layer.residual, layer.a, layer.b, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        branch = torch.cat([F.linear(F.linear(x, a), b) for a, b in zip(self.a, self.b)], dim=-1)
        return F.linear(x, self.residual, self.bias) + branch


def available(names: Sequence[str]) -> list[str]:
    """The contestants that can run here. Those of peft need peft.

    Raises:
        ValueError: a name is unknown.
    """
    unknown = sorted(set(names) - set(CONTESTANTS))
    if unknown:
        raise ValueError(f"Unknown contestants {unknown}: choose from {list(CONTESTANTS)}.")
    has_peft = importlib.util.find_spec("peft") is not None
    return [name for name in names if has_peft or name not in NEED_PEFT]


def create_vit(size: str, pixels: int) -> nn.Module:
    """A ViT with random weights, on which time does not depend.

    Args:
        size: one of ``SIZES``, or any timm ViT.
        pixels: height and width of the images.
    """
    return timm.create_model(SIZES.get(size, size), num_classes=0, img_size=pixels, dynamic_img_size=True)


def adapted_blocks(vit: nn.Module) -> list[int]:
    """The last two thirds, as in the recipe."""
    depth = len(vit.blocks)
    return list(range(depth // 3, depth))


def adapt(vit: nn.Module, name: str, rank: int) -> None:
    """Turn a plain ViT into a contestant, in place. SoMA and peft's methods train the biases of their layers too.

    The factors are random: a decomposition takes long and changes no time of a step. PiSSA and LoRA differ in their
    start only.
    """
    blocks = adapted_blocks(vit)
    if name == FLOOR:
        vit.requires_grad_(False)
        for layer in select_linears(vit, blocks):
            vit.get_submodule(layer).bias.requires_grad_(True)
        return
    method = ADAPTERS["soma" if name == "two_branch" else name]
    config = method() if name in ("frozen", "full") else method(rank=rank)
    adapt_model(vit, config, blocks, initialize=name == PEFT_LORA)
    _fill(vit)
    if name == "two_branch":
        for layer, module in [*vit.named_modules()]:
            if isinstance(module, SomaLinear):
                replace_module(vit, layer, TwoBranchLinear(module))


def _fill(vit: nn.Module) -> None:
    for module in vit.modules():
        if isinstance(module, SomaLinear):
            nn.init.normal_(module.a, std=0.01)
            nn.init.normal_(module.b, std=0.01)
