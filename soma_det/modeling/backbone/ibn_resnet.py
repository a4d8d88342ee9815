"""IBN-Net: a ResNet that normalizes half of its channels image by image, which takes out style.

Source: Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, arXiv 1807.09441, section 3.2
(IBN-a): in the residual blocks of the stages res2, res3 and res4 the first normalization is split into instance
normalization for the first half of the channels and batch normalization for the second.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.resnet import ResNet, build_resnet_backbone
from torch import Tensor, nn

from soma_det.modeling.backbone.pyramid import Subsample, in_full_precision

IBN_STAGES = ("res2", "res3", "res4")


class InstanceBatchNorm(nn.Module):
    """Instance normalization of the first half of the channels, ``norm`` ("BN", "SyncBN", ...) of the second."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.split_at = channels // 2
        self.instance = nn.InstanceNorm2d(self.split_at, affine=True)
        self.batch = get_norm(norm, channels - self.split_at)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)"""
        return torch.cat([self.instance(x[:, : self.split_at]), self.batch(x[:, self.split_at :])], dim=1)


class FullPrecisionFPN(FPN):
    """Detectron2's feature pyramid; features leave it in fp32, also under autocast."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), H and W multiples of 32 -> {"p2": (N, C, H/4, W/4), ..., "p7": (N, C, H/128, W/128)}"""
        return in_full_precision(super().forward(x))


@BACKBONE_REGISTRY.register()
def build_ibn_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet of MODEL.RESNETS as an IBN-Net of type a; a ValueError where it has no NORM."""
    norm = cfg.MODEL.RESNETS.NORM
    if not norm:
        raise ValueError("MODEL.RESNETS.NORM is empty, and IBN-Net needs batch normalization: set it to BN or SyncBN.")
    resnet = build_resnet_backbone(cfg, input_shape)
    for stage in IBN_STAGES:
        for block in getattr(resnet, stage, ()):
            block.conv1.norm = InstanceBatchNorm(block.conv1.out_channels, norm)
    return resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)  # again, for the new layers


@BACKBONE_REGISTRY.register()
def build_ibn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FullPrecisionFPN:
    """:func:`build_ibn_resnet_backbone` under Detectron2's feature pyramid of MODEL.FPN, p2..p7."""
    return FullPrecisionFPN(
        bottom_up=build_ibn_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=Subsample("p5", num_levels=2),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
