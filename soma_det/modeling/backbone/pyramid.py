"""Feature pyramids p2..p7 (strides 4..128 pixels) from the maps of a plain ViT, which all have one stride."""

import math

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from soma_det.modeling.backbone.timm_vit import TimmViT

STRIDES = (4, 8, 16, 32)  # pixels, of p2..p5
LAST_LEVEL = 7


def in_full_precision(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features in fp32 (or fp64), also under autocast.

    Detectron2's ROIAlign rounds boxes to the features' type, and bfloat16 tells 300 pixels from 302, not from 301.
    """
    return {name: f.to(torch.promote_types(f.dtype, torch.float32)) for name, f in features.items()}


class Subsample(nn.Module):
    """Further levels without parameters: every second pixel of the level before.

    The attributes are what Detectron2 asks of a ``top_block``.
    """

    def __init__(self, in_feature: str, num_levels: int):
        super().__init__()
        self.in_feature, self.num_levels = in_feature, num_levels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> (N, C, H/2, W/2), (N, C, H/4, W/4), ..., rounded up"""
        return [F.max_pool2d(x, kernel_size=1, stride=2**level) for level in range(1, self.num_levels + 1)]


class SimplePyramid(SimpleFeaturePyramid):
    """All levels from one map, enlarged by transposed convolutions or pooled.

    Source: Exploring Plain Vision Transformer Backbones for Object Detection, arXiv 2203.16527, section 3.
    """

    def __init__(self, net: TimmViT, out_channels: int, finest_level: int = 2):
        """``net`` has one map, of stride 16 or 8 pixels; from stride 8, p5 too is subsampled."""
        ((in_feature, shape),) = net.output_shape().items()
        strides = [stride for stride in STRIDES if 2**finest_level <= stride <= 2 * shape.stride]
        top = int(math.log2(strides[-1]))
        super().__init__(
            net,
            in_feature,
            out_channels,
            scale_factors=[shape.stride / stride for stride in strides],
            top_block=Subsample(f"p{top}", LAST_LEVEL - top),
            norm=LayerNorm2d,  # a torch LayerNorm, whose weights are not decayed; Detectron2's own "LN" is not
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), multiples of size_divisibility -> {"p2": (N, C, H/4, W/4), ..., "p7": (N, C, H/128, W/128)}

        Without p2 where ``finest_level`` is 3.
        """
        return in_full_precision(super().forward(x))

    @property
    def size_divisibility(self) -> int:
        """Pixels. Detectron2 0.7 names it wrongly in padding_constraints, so that images would not be padded."""
        return self._size_divisibility


class MultiBlockPyramid(Backbone):
    """A level from the map of each of four blocks: blocks 7, 11, 15, 23 of ViT-L resized by 4, 2, 1 and 0.5.

    Source: arXiv 2412.04077 (its detection set-up, after Rein, arXiv 2312.04265).
    """

    def __init__(self, net: TimmViT, out_channels: int):
        """``net`` has four maps of one stride."""
        super().__init__()
        self.net = net
        self._scales = {}
        for stride, shape in zip(STRIDES, net.output_shape().values(), strict=True):
            level = f"p{int(math.log2(stride))}"
            self._scales[level] = shape.stride / stride
            self.add_module(level, _lateral(shape.channels, out_channels))
        self.top_block = Subsample(level, LAST_LEVEL - len(STRIDES) - 1)
        self._out_features = [f"p{index}" for index in range(2, LAST_LEVEL + 1)]
        self._out_feature_strides = {name: 2 ** int(name[1:]) for name in self._out_features}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As SimplePyramid's."""
        levels = []
        for (level, scale), feature in zip(self._scales.items(), self.net(x).values(), strict=True):
            # Channels are reduced before resizing: a 1 x 1 convolution commutes with it, and is cheaper on a small map.
            feature = getattr(self, level)[:2](feature)
            if scale != 1:
                feature = F.interpolate(feature, scale_factor=scale, mode="bilinear", align_corners=False)
            levels.append(getattr(self, level)[2:](feature))
        return in_full_precision(dict(zip(self._out_features, levels + self.top_block(levels[-1]), strict=True)))

    @property
    def size_divisibility(self) -> int:
        return STRIDES[-1]


def _lateral(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
