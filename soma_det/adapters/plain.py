"""The ViT as it is, trained not at all, as a whole, or in its biases only."""

from typing import Sequence

from torch import nn

from soma_det.adapters.registry import Adapter, register_adapter

# What comes after the blocks: a detector takes the blocks' outputs, so these would never get a gradient.
AFTER_BLOCKS = ("norm", "fc_norm", "attn_pool", "head")


def train_nothing(vit: nn.Module, blocks: Sequence[int]) -> list[str]:
    """No parameter at all."""
    return []


def train_all(vit: nn.Module, blocks: Sequence[int]) -> list[str]:
    """All parameters of the blocks and, where the first block is among them, of the embeddings before it."""
    _require_blocks(vit, blocks)
    return [
        name
        for name, _ in vit.named_parameters()
        if _block(name) in blocks or (0 in blocks and _block(name) is None and name.split(".")[0] not in AFTER_BLOCKS)
    ]


def train_biases(vit: nn.Module, blocks: Sequence[int]) -> list[str]:
    """All biases of the blocks: of attention, MLP and norms.

    Source: BitFit, arXiv 2106.10199.
    """
    _require_blocks(vit, blocks)
    names = [name for name, _ in vit.named_parameters() if _block(name) in blocks and name.endswith("bias")]
    if not names:
        raise ValueError(f"Blocks {list(blocks)} have no biases to train: choose another MODEL.ADAPTER.NAME.")
    return names


def _block(parameter: str) -> int | None:
    words = parameter.split(".")
    return int(words[1]) if words[0] == "blocks" else None


def _require_blocks(vit: nn.Module, blocks: Sequence[int]) -> None:
    absent = [block for block in blocks if not 0 <= block < len(vit.blocks)]
    if absent or not len(blocks):
        raise ValueError(
            f"Blocks {list(blocks)} cannot be trained: this ViT has blocks 0..{len(vit.blocks) - 1}. Freeze fewer "
            "leading blocks, or set MODEL.ADAPTER.NAME to 'frozen' to train none."
        )


def _merge(vit: nn.Module) -> list[str]:
    return []


register_adapter(Adapter("frozen", "nothing: the ViT stays as pretrained", train_nothing, merge=_merge))
register_adapter(
    Adapter("full", "everything in the blocks that are not frozen", train_all, options=("blocks",), merge=_merge)
)
register_adapter(
    Adapter("biases", "the biases of the blocks that are not frozen", train_biases, options=("blocks",), merge=_merge)
)
