"""The backbone that a Detectron2 config asks for: a ViT, frozen below, adapted above, under a feature pyramid."""

import logging

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from torch import nn

from soma_det.adapters import Adapter, get_adapter, inject_adapter
from soma_det.config import add_soma_config
from soma_det.config.checks import has_vit
from soma_det.config.pixels import check_pixel_statistics
from soma_det.modeling.backbone.pretrained import check_weights
from soma_det.modeling.backbone.pyramid import MultiBlockPyramid, SimplePyramid, build_pyramid
from soma_det.modeling.backbone.timm_vit import TimmViT, count_parameters, create_timm_vit, freeze_leading_blocks
from soma_det.modeling.meta_arch.rcnn import AuxiliaryLosses

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
    freeze_leading_blocks(vit, vit_cfg.FROZEN_BLOCKS)
    _adapt(vit, cfg)
    logger.info("ViT: %d of %d parameters train", count_parameters(vit, trainable=True), count_parameters(vit))
    return build_pyramid(TimmViT(vit, vit_cfg.OUT_BLOCKS), cfg.MODEL.PYRAMID.OUT_CHANNELS)


def _weights_to_load(cfg: CfgNode) -> str:
    return "" if cfg.MODEL.WEIGHTS or torch.device(cfg.MODEL.DEVICE).type == "meta" else cfg.MODEL.VIT.WEIGHTS


def _adapt(vit: nn.Module, cfg: CfgNode) -> None:
    adapter = get_adapter(cfg.MODEL.ADAPTER.NAME)
    _check_options(cfg, adapter)
    if adapter.auxiliary_loss:
        _require_auxiliary_losses(cfg, adapter)
    if not cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS and adapter.name != "full":
        logger.warning(
            "MODEL.ADAPTER %s on random weights: there is nothing pretrained to preserve. Set MODEL.VIT.WEIGHTS.",
            adapter.name,
        )
    blocks, options = _blocks(cfg, adapter, len(vit.blocks)), _options(cfg, adapter)
    with torch.random.fork_rng(devices=[]):  # so that pyramid and head start alike, whatever the method has drawn
        names = inject_adapter(vit, adapter.name, blocks, **options)
    logger.info("Adapter %s trains %d tensors", adapter.name, len(names))


def _blocks(cfg: CfgNode, adapter: Adapter, depth: int) -> list[int]:
    """Blocks to adapt: as set, or by the method's habit among those that neither are frozen nor left uncomputed."""
    frozen, blocks = cfg.MODEL.VIT.FROZEN_BLOCKS, list(cfg.MODEL.ADAPTER.BLOCKS)
    if any(block < frozen for block in blocks):
        raise ValueError(f"MODEL.ADAPTER.BLOCKS {blocks} reaches into the {frozen} MODEL.VIT.FROZEN_BLOCKS.")
    last = max((block % depth for block in cfg.MODEL.VIT.OUT_BLOCKS), default=depth - 1)
    if any(last < block < depth for block in blocks):
        raise ValueError(
            f"MODEL.ADAPTER.BLOCKS {blocks}: blocks after {last}, the last of MODEL.VIT.OUT_BLOCKS, are not computed."
        )
    return blocks or adapter.usual_blocks(frozen, last)


def _options(cfg: CfgNode, adapter: Adapter) -> dict:
    """The method's options under the names of its keyword arguments; an empty list leaves the method's own default."""
    node = cfg.MODEL.ADAPTER
    values = {key.lower(): value for key, value in {**node, **node.get(adapter.name.upper(), {})}.items()}
    values |= {"seed": max(cfg.SEED, 0), "decompose": not cfg.MODEL.WEIGHTS}
    wanted = [option for option in adapter.options if option != "blocks"]
    return {option: values[option] for option in wanted if values[option] != []}


def _check_options(cfg: CfgNode, adapter: Adapter) -> None:
    """Raise a ValueError where an option is set that the chosen method does not have."""
    default = get_cfg()
    add_soma_config(default)
    before = _flat(default.MODEL.ADAPTER)
    own = adapter.name.upper()
    allowed = {"NAME"} | {key for option in adapter.options for key in (option.upper(), f"{own}.{option.upper()}")}
    for key, value in _flat(cfg.MODEL.ADAPTER).items():
        if value != before[key] and key not in allowed:
            has = sorted(allowed & before.keys() - {"NAME"}) or "no options"
            raise ValueError(
                f"MODEL.ADAPTER.{key} is set to {value!r}, which the method {adapter.name!r} does not have (it has {has}): "
                f"leave it at {before[key]!r}, or choose another MODEL.ADAPTER.NAME."
            )


def _flat(node: CfgNode) -> dict:
    """{"RANK": 16, "MOA.EXPERTS": "kronecker", ...}"""
    flat = {}
    for key, value in node.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, CfgNode) else {key: value}
    return flat


def _require_auxiliary_losses(cfg: CfgNode, adapter: Adapter) -> None:
    name = cfg.MODEL.META_ARCHITECTURE
    if not issubclass(META_ARCH_REGISTRY.get(name), AuxiliaryLosses):
        raise ValueError(
            f"MODEL.ADAPTER.NAME {adapter.name!r} has a loss of its own, which MODEL.META_ARCHITECTURE {name!r} would "
            "leave out: set it to 'AdaptedRCNN'."
        )
