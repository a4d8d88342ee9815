"""Adapts a ViT as MODEL.ADAPTER and MODEL.VIT say."""

import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from soma_det.adapters import AdapterConfig, adapt
from soma_det.config.adapter import adapter_config

logger = logging.getLogger(__name__)


def adapt_from_config(vit: nn.Module, cfg: CfgNode) -> None:
    """Adapt the blocks beyond the frozen ones, in place; afterwards only what the method trains requires gradients.

    Raises:
        ValueError: the blocks do not fit the ViT, or a rank its weights.
    """
    config = adapter_config(cfg)
    if not cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS and config.name != "full":
        logger.warning(
            "MODEL.ADAPTER %s on random weights: there is nothing pretrained to preserve. Set MODEL.VIT.WEIGHTS.",
            config.name,
        )
    blocks = _blocks(cfg, config, len(vit.blocks))
    with torch.random.fork_rng(devices=[]):  # so that pyramid and head start alike, whatever the method has drawn
        names = adapt(vit, config, blocks, tuple(cfg.MODEL.ADAPTER.TARGETS), initialize=not cfg.MODEL.WEIGHTS)
    logger.info("Adapter %s trains %d tensors", config.name, len(names))


def _blocks(cfg: CfgNode, config: AdapterConfig, depth: int) -> list[int]:
    """Blocks to adapt: as set, or by the method's habit among those that neither are frozen nor left uncomputed."""
    frozen, blocks = cfg.MODEL.VIT.FROZEN_BLOCKS, list(cfg.MODEL.ADAPTER.BLOCKS)
    if not 0 <= frozen <= depth:
        raise ValueError(f"MODEL.VIT.FROZEN_BLOCKS is {frozen}, outside 0..{depth}, the number of blocks of this ViT.")
    if any(block < frozen for block in blocks):
        raise ValueError(f"MODEL.ADAPTER.BLOCKS {blocks} reaches into the {frozen} MODEL.VIT.FROZEN_BLOCKS.")
    last = max((block % depth for block in cfg.MODEL.VIT.OUT_BLOCKS), default=depth - 1)
    if any(last < block < depth for block in blocks):
        raise ValueError(
            f"MODEL.ADAPTER.BLOCKS {blocks}: blocks after {last}, the last of MODEL.VIT.OUT_BLOCKS, are not computed."
        )
    return blocks or config.usual_blocks(frozen, last)
