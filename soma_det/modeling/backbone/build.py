"""The backbone that a Detectron2 config asks for: a ViT, frozen below, adapted above, under a feature pyramid."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from soma_det.adapters import AdapterConfig, adapt
from soma_det.config.adapter import adapter_config
from soma_det.config.checks import has_vit
from soma_det.config.pixels import check_pixel_statistics
from soma_det.modeling.backbone.pretrained import check_weights
from soma_det.modeling.backbone.pyramid import MultiBlockPyramid, SimplePyramid
from soma_det.modeling.backbone.timm_vit import TimmModel, TimmViT, count_parameters, create_timm_vit

logger = logging.getLogger(__name__)


def check_pretrained(cfg: CfgNode) -> None:
    """Raise a FileNotFoundError where build_soma_vit_backbone would read a file of weights that does not exist."""
    if has_vit(cfg):
        check_weights(cfg.MODEL.VIT.NAME, _weights_to_load(cfg))


@BACKBONE_REGISTRY.register()
def build_soma_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimplePyramid | MultiBlockPyramid:
    """Load a pretrained timm ViT, freeze its first blocks, adapt the later ones, put a feature pyramid on top.

    The weights are loaded here, not through MODEL.WEIGHTS, because SoMA decomposes what it finds. Where MODEL.WEIGHTS
    names a checkpoint, which brings every weight of the adapted ViT, they are not; nor on the device "meta".
    """
    check_pixel_statistics(cfg)
    vit_cfg = cfg.MODEL.VIT
    vit = create_timm_vit(vit_cfg.NAME, _weights_to_load(cfg), vit_cfg.PATCH_SIZE, vit_cfg.IMG_SIZE, vit_cfg.DROP_PATH)
    vit.set_grad_checkpointing(vit_cfg.ACTIVATION_CHECKPOINTING)
    _adapt(vit, cfg)
    logger.info("ViT: %d of %d parameters train", count_parameters(vit, trainable=True), count_parameters(vit))
    pyramid = SimplePyramid if len(vit_cfg.OUT_BLOCKS) == 1 else MultiBlockPyramid
    return pyramid(TimmViT(vit, vit_cfg.OUT_BLOCKS), cfg.MODEL.PYRAMID.OUT_CHANNELS)


def _weights_to_load(cfg: CfgNode) -> str:
    return "" if cfg.MODEL.WEIGHTS or torch.device(cfg.MODEL.DEVICE).type == "meta" else cfg.MODEL.VIT.WEIGHTS


def _adapt(vit: TimmModel, cfg: CfgNode) -> None:
    """Adapt the blocks beyond the frozen ones, in place; afterwards only what the method trains requires gradients."""
    config = adapter_config(cfg)
    if not cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS and config.name != "full":
        logger.warning("MODEL.ADAPTER %s on random weights preserves nothing: set MODEL.VIT.WEIGHTS.", config.name)
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
