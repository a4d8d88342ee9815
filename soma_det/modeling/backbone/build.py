"""The backbone that a config asks for: a timm model, frozen below, adapted above, under a feature pyramid."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from timm.layers import LayerNorm2d

from soma_det.adapters import AdapterConfig, adapt
from soma_det.adapters.selection import find_blocks
from soma_det.config.adapter import adapter_config
from soma_det.config.checks import has_vit, is_hierarchical
from soma_det.config.pixels import check_pixel_statistics
from soma_det.modeling.backbone.hierarchical import TimmHierarchy, create_timm_hierarchy
from soma_det.modeling.backbone.ibn_resnet import FullPrecisionFPN
from soma_det.modeling.backbone.input_size import input_size
from soma_det.modeling.backbone.pretrained import check_weights
from soma_det.modeling.backbone.pyramid import LAST_LEVEL, MultiBlockPyramid, SimplePyramid, Subsample
from soma_det.modeling.backbone.timm_vit import TimmModel, TimmViT, count_parameters, create_timm_vit

logger = logging.getLogger(__name__)


def check_pretrained(cfg: CfgNode) -> None:
    """Raise a FileNotFoundError where the backbone would read a file of weights that does not exist."""
    if has_vit(cfg):
        check_weights(cfg.MODEL.VIT.NAME, _weights_to_load(cfg))


@BACKBONE_REGISTRY.register()
def build_soma_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimplePyramid | MultiBlockPyramid:
    """Load a pretrained timm ViT, freeze its first blocks, adapt the later ones, put a feature pyramid on top.

    The weights are loaded here, not through MODEL.WEIGHTS, because SoMA decomposes what it finds. Where MODEL.WEIGHTS
    names a checkpoint, which brings every weight of the adapted ViT, they are not; nor on the device "meta".
    """
    net, pyramid = TimmViT(_build_adapted(cfg), cfg.MODEL.VIT.OUT_BLOCKS), cfg.MODEL.PYRAMID
    if len(cfg.MODEL.VIT.OUT_BLOCKS) == 1:
        return SimplePyramid(net, pyramid.OUT_CHANNELS, pyramid.FINEST_LEVEL)
    return MultiBlockPyramid(net, pyramid.OUT_CHANNELS)


@BACKBONE_REGISTRY.register()
def build_soma_hierarchical_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FullPrecisionFPN:
    """As :func:`build_soma_vit_backbone` for a Swin, Hiera or ConvNeXt, whose blocks are counted through the stages.

    Its stages go into Detectron2's feature pyramid, p2..p7, with a LayerNorm after each convolution.
    """
    stages = TimmHierarchy(_build_adapted(cfg))
    return FullPrecisionFPN(
        bottom_up=stages,
        in_features=list(stages.output_shape()),
        out_channels=cfg.MODEL.PYRAMID.OUT_CHANNELS,
        norm=LayerNorm2d,
        top_block=Subsample("p5", LAST_LEVEL - 5),
    )


def create_pretrained(cfg: CfgNode, weights: str) -> TimmModel:
    """The config's timm model as it was before any adapter; ``weights`` as in :func:`create_timm_vit`."""
    vit = cfg.MODEL.VIT
    if is_hierarchical(cfg):
        return create_timm_hierarchy(vit.NAME, weights, vit.IMG_SIZE, vit.DROP_PATH)
    return create_timm_vit(vit.NAME, weights, vit.PATCH_SIZE, vit.IMG_SIZE, vit.DROP_PATH)


def _build_adapted(cfg: CfgNode) -> TimmModel:
    check_pixel_statistics(cfg)
    vit = create_pretrained(cfg, _weights_to_load(cfg))
    _check_crop(cfg, vit)
    vit.set_grad_checkpointing(cfg.MODEL.VIT.ACTIVATION_CHECKPOINTING)
    _adapt(vit, cfg)
    logger.info("ViT: %d of %d parameters train", count_parameters(vit, trainable=True), count_parameters(vit))
    return vit


def _check_crop(cfg: CfgNode, vit: TimmModel) -> None:
    """Raise a ValueError where training images are larger than the only size that the model takes."""
    fixed, crop = input_size(vit).fixed, cfg.INPUT.AUGMENTATION.CROP_SIZE
    if fixed and (crop[0] > fixed[0] or crop[1] > fixed[1]):
        raise ValueError(
            f"INPUT.AUGMENTATION.CROP_SIZE is {list(crop)}, and {cfg.MODEL.VIT.NAME} takes images of "
            f"MODEL.VIT.IMG_SIZE {list(fixed)} alone, to which smaller ones are padded: set both to the same."
        )


def _weights_to_load(cfg: CfgNode) -> str:
    return "" if cfg.MODEL.WEIGHTS or torch.device(cfg.MODEL.DEVICE).type == "meta" else cfg.MODEL.VIT.WEIGHTS


def _adapt(vit: TimmModel, cfg: CfgNode) -> None:
    """Adapt the blocks beyond the frozen ones, in place; afterwards only what the method trains requires gradients."""
    config = adapter_config(cfg)
    if not cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS and config.name != "full":
        logger.warning("MODEL.ADAPTER %s on random weights preserves nothing: set MODEL.VIT.WEIGHTS.", config.name)
    blocks = _blocks(cfg, config, len(find_blocks(vit)))
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
    out_blocks = [] if is_hierarchical(cfg) else cfg.MODEL.VIT.OUT_BLOCKS
    last = max((block % depth for block in out_blocks), default=depth - 1)
    if any(last < block < depth for block in blocks):
        raise ValueError(
            f"MODEL.ADAPTER.BLOCKS {blocks}: blocks after {last}, the last of MODEL.VIT.OUT_BLOCKS, are not computed."
        )
    return blocks or config.usual_blocks(frozen, last)
