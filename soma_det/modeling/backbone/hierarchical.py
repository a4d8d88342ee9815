"""timm's hierarchical models as Detectron2 backbones: one feature map for each stage, at strides of 4 to 32 pixels."""

import logging
from collections.abc import Sequence
from typing import Any

import timm
import torch
from detectron2.layers import ShapeSpec
from timm.models.convnext import ConvNeXt
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2

from soma_det.adapters.selection import find_blocks
from soma_det.config.checks import check_vit_name, check_vit_size
from soma_det.modeling.backbone.pretrained import check_weights, load_weights
from soma_det.modeling.backbone.pyramid import STRIDES
from soma_det.modeling.backbone.timm_vit import TimmBackbone, TimmModel, build_timm

FAMILIES = (ConvNeXt, Hiera, SwinTransformer, SwinTransformerV2)
REMEDY = (
    "Choose another MODEL.VIT.NAME, from timm.list_models(['convnext*', 'hiera*', 'swin_*', 'swinv2_*']), or for a "
    "plain ViT set MODEL.BACKBONE.NAME to build_soma_vit_backbone."
)

logger = logging.getLogger(__name__)


class TimmHierarchy(TimmBackbone):
    """The stages of a hierarchical timm model. Features are named stage0 to stage3, before any final norm."""

    def __init__(self, model: TimmModel):
        """``model`` is one of :func:`create_timm_hierarchy`."""
        stages = enumerate(model.feature_info)
        shapes = {f"stage{i}": ShapeSpec(channels=s["num_chs"], stride=s["reduction"]) for i, s in stages}
        super().__init__(model, range(len(shapes)), shapes)


def create_timm_hierarchy(name: str, weights: str, img_size: Sequence[int], drop_path: float = 0.0) -> TimmModel:
    """A ConvNeXt, Hiera, Swin or Swin V2 of timm without classifier.

    Args:
        name, weights, drop_path: as of :func:`~soma_det.modeling.backbone.timm_vit.create_timm_vit`.
        img_size: (H, W), pixels, multiples of 32: the largest input of a Hiera; Swin and ConvNeXt take any size.

    Raises:
        ValueError: timm has no such model, or it is not of these families, or the size does not fit.
        FileNotFoundError: the file of weights does not exist.
        RuntimeError: the weights cannot be had or do not fit.
    """
    check_weights(name, weights)
    check_vit_name(name)
    check_vit_size(img_size, STRIDES[-1], "the last stride")
    options = {"drop_path_rate": drop_path} | _size_options(name, (img_size[0], img_size[1]))
    model = build_timm(name, weights, options, REMEDY)
    if weights not in ("", "timm"):
        load_weights(model, name, weights)
    source = f"weights from {weights}" if weights else "random weights"
    logger.info("%s: %d blocks in %d stages, %s", name, len(find_blocks(model)), len(model.feature_info), source)
    return model


def _size_options(name: str, img_size: tuple[int, int]) -> dict[str, Any]:
    """What makes the model take images of this size; a ValueError where nothing does."""
    with torch.device("meta"):  # its structure alone: takes no memory and draws no random numbers
        sketch = timm.create_model(name)
    strides = tuple(stage["reduction"] for stage in getattr(sketch, "feature_info", ()))
    if not isinstance(sketch, FAMILIES) or strides != STRIDES:
        raise ValueError(
            f"MODEL.VIT.NAME {name!r} is not one of the hierarchical models that are supported, with stages of the "
            f"strides {list(STRIDES)}, but timm's {type(sketch).__name__} of {list(strides[:5])}. {REMEDY}"
        )
    if isinstance(sketch, ConvNeXt):
        return {}
    if not isinstance(sketch, Hiera):  # with always_partition windows are as large as in the pretraining in all stages
        return {"img_size": img_size, "dynamic_img_size": True, "always_partition": True}
    own = tuple(4 * tokens for tokens in sketch.tokens_spatial_shape)
    if sketch.pos_embed_win is None and own != img_size:
        # Source: Window Attention is Bugged, arXiv 2311.05613.
        raise ValueError(
            f"MODEL.VIT.IMG_SIZE is {list(img_size)}, and {name!r} has position embeddings for {list(own)} that cannot "
            "be interpolated, since they repeat with its windows: choose a hiera_*_abswin_* as MODEL.VIT.NAME."
        )
    return {"img_size": img_size}
