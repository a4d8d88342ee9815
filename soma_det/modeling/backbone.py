"""The backbone that a Detectron2 config asks for: a ViT, frozen below, adapted above, under a feature pyramid."""

import logging

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from soma_det.adapters.soma import inject_soma
from soma_det.modeling.pyramid import build_pyramid
from soma_det.modeling.vit import TimmViT, count_parameters, create_timm_vit, freeze_leading_blocks

logger = logging.getLogger(__name__)


class ViTPyramid(Backbone):
    """A ViT and the pyramid on top of it: features p2..p6, strides 4..64."""

    def __init__(self, vit: TimmViT, pyramid: nn.Module, out_channels: int):
        super().__init__()
        self.vit, self.pyramid = vit, pyramid
        stride = vit.patch_size
        self._out_feature_strides = {"p2": stride // 4, "p3": stride // 2, "p4": stride, "p5": stride * 2, "p6": stride * 4}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), H and W multiples of size_divisibility -> {"p2": (N, C, H/4, W/4), ..., "p6": (N, C, H/64, W/64)}"""
        return self.pyramid(self.vit(x))

    @property
    def size_divisibility(self) -> int:
        """Pixels; p5 halves the patches."""
        return self.vit.patch_size * 2


@BACKBONE_REGISTRY.register()
def build_soma_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTPyramid:
    """Load a pretrained timm ViT, freeze its first blocks, adapt the later ones, put a feature pyramid on top.

    The order matters: the weights are loaded here and not through MODEL.WEIGHTS, because SoMA decomposes what it finds.
    Where MODEL.WEIGHTS names a checkpoint of this project, which brings every weight of the adapted ViT, the pretrained
    ones are not loaded first.
    """
    vit_cfg = cfg.MODEL.VIT
    weights = "" if cfg.MODEL.WEIGHTS else vit_cfg.WEIGHTS
    vit = create_timm_vit(vit_cfg.NAME, weights, vit_cfg.PATCH_SIZE, vit_cfg.IMG_SIZE, vit_cfg.DROP_PATH)
    vit.set_grad_checkpointing(vit_cfg.ACTIVATION_CHECKPOINTING)
    freeze_leading_blocks(vit, vit_cfg.FROZEN_BLOCKS)
    _adapt(vit, cfg)
    logger.info("ViT: %d of %d parameters train", count_parameters(vit, trainable=True), count_parameters(vit))
    maps = TimmViT(vit, vit_cfg.OUT_BLOCKS)
    channels = cfg.MODEL.PYRAMID.OUT_CHANNELS
    return ViTPyramid(maps, build_pyramid(len(maps.out_blocks), maps.embed_dim, channels), channels)


def _adapt(vit: nn.Module, cfg: CfgNode) -> None:
    adapter = cfg.MODEL.ADAPTER
    if adapter.NAME == "none":
        return
    if adapter.NAME != "soma":
        raise ValueError(f"MODEL.ADAPTER.NAME is {adapter.NAME!r}: choose 'soma' or 'none'.")
    frozen = cfg.MODEL.VIT.FROZEN_BLOCKS
    blocks = adapter.BLOCKS or range(frozen, len(vit.blocks))
    if any(block < frozen for block in blocks):
        raise ValueError(f"MODEL.ADAPTER.BLOCKS {list(blocks)} reaches into the {frozen} MODEL.VIT.FROZEN_BLOCKS.")
    if not cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS:
        logger.warning("SoMA on random weights: there is nothing pretrained to preserve. Set MODEL.VIT.WEIGHTS.")
    names = inject_soma(
        vit,
        adapter.RANK,
        blocks,
        adapter.TARGETS,
        adapter.COMPONENTS,
        seed=max(cfg.SEED, 0),
        decompose=not cfg.MODEL.WEIGHTS,
    )
    vit.requires_grad_(False)
    for name in names:
        layer = vit.get_submodule(name)
        layer.a.requires_grad_(True)
        layer.b.requires_grad_(True)
        if layer.bias is not None:
            layer.bias.requires_grad_(adapter.TRAIN_BIAS)
