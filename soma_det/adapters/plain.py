"""The model as it is, trained not at all, as a whole, or in its biases only."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from soma_det.adapters.base import AdapterConfig, Blocks, register, require
from soma_det.adapters.selection import find_blocks, select_blocks

# What comes after the blocks: a detector takes the blocks' outputs, so these would never get a gradient.
AFTER_BLOCKS = ("norm", "fc_norm", "attn_pool", "head")


@register
@dataclass(frozen=True)
class FrozenConfig(AdapterConfig):
    """Nothing trains."""

    name = "frozen"
    summary = "nothing: the ViT stays as pretrained"
    takes_blocks = False

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        return []


@register
@dataclass(frozen=True)
class FullConfig(AdapterConfig):
    """All parameters of the blocks train and, where the first block is among them, those of the embeddings."""

    name = "full"
    summary = "everything in the blocks that are not frozen"

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        chosen, others = select_blocks(model, blocks), find_blocks(model)
        names = [name for name, _ in model.named_parameters()]
        return [
            name
            for name in names
            if _inside(name, chosen)
            or (0 in (blocks or ()) and not _inside(name, others) and name.split(".")[0] not in AFTER_BLOCKS)
        ]


@register
@dataclass(frozen=True)
class BiasesConfig(AdapterConfig):
    """All biases of the blocks train: of attention, MLP and norms.

    Source: BitFit, arXiv 2106.10199.
    """

    name = "biases"
    summary = "the biases of the blocks that are not frozen"

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        chosen = select_blocks(model, blocks)
        names = [n for n, _ in model.named_parameters() if _inside(n, chosen) and n.endswith("bias")]
        require(bool(names), f"Blocks {chosen} have no biases to train: choose another MODEL.ADAPTER.NAME.")
        return names


def _inside(parameter: str, blocks: Sequence[str]) -> bool:
    return any(parameter.startswith(f"{block}.") for block in blocks)
