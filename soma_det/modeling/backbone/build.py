"""The backbone that a Detectron2 config asks for: a ViT, frozen below, adapted above, under a feature pyramid."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from soma_det.config.checks import has_vit
from soma_det.config.pixels import check_pixel_statistics
from soma_det.modeling.backbone.adaptation import adapt_from_config
from soma_det.modeling.backbone.pretrained import check_weights
from soma_det.modeling.backbone.pyramid import MultiBlockPyramid, SimplePyramid, build_pyramid
from soma_det.modeling.backbone.timm_vit import TimmViT, count_parameters, create_timm_vit

logger = logging.getLogger(__name__)


def check_pretrained(cfg: CfgNode) -> None:
    """Raise a FileNotFoundError where build_soma_vit_backbone would read a file of weights that does not exist."""
    if has_vit(cfg):
        check_weights(cfg.MODEL.VIT.NAME, _weights_to_load(cfg))


@BACKBONE_REGISTRY.register()
def build_soma_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimplePyramid | MultiBlockPyramid:
    """Load a pretrained timm ViT, freeze its first blocks, adapt the later ones, put a feature pyramid on top.

    The order matters: the weights are loaded here and not through MODEL.WEIGHTS, because SoMA decomposes what it finds.
    Where MODEL.WEIGHTS names a checkpoint of this project, which brings every weight of the adapted ViT, the pretrained
    ones are not loaded first; nor are they on the device "meta", see :func:`soma_det.modeling.build_structure`.
    """
    check_pixel_statistics(cfg)
    vit_cfg = cfg.MODEL.VIT
    vit = create_timm_vit(vit_cfg.NAME, _weights_to_load(cfg), vit_cfg.PATCH_SIZE, vit_cfg.IMG_SIZE, vit_cfg.DROP_PATH)
    vit.set_grad_checkpointing(vit_cfg.ACTIVATION_CHECKPOINTING)
    adapt_from_config(vit, cfg)
    logger.info("ViT: %d of %d parameters train", count_parameters(vit, trainable=True), count_parameters(vit))
    return build_pyramid(TimmViT(vit, vit_cfg.OUT_BLOCKS), cfg.MODEL.PYRAMID.OUT_CHANNELS)


def _weights_to_load(cfg: CfgNode) -> str:
    return "" if cfg.MODEL.WEIGHTS or torch.device(cfg.MODEL.DEVICE).type == "meta" else cfg.MODEL.VIT.WEIGHTS
