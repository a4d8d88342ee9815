"""Feature pyramids p2..p6 (strides 4..64) from the stride-16 maps of a plain ViT."""

from typing import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

SCALES = {"p2": 4.0, "p3": 2.0, "p4": 1.0, "p5": 0.5}  # size of each level against the stride-16 map


class SimplePyramid(nn.Module):
    """All levels from the last map, enlarged by transposed convolutions or pooled.

    Source: Exploring Plain Vision Transformer Backbones for Object Detection, arXiv 2203.16527, section 3.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        self.p2 = nn.Sequential(
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
            _lateral(quarter, out_channels),
        )
        self.p3 = nn.Sequential(nn.ConvTranspose2d(in_channels, half, 2, stride=2), _lateral(half, out_channels))
        self.p4 = _lateral(in_channels, out_channels)
        self.p5 = nn.Sequential(nn.MaxPool2d(2), _lateral(in_channels, out_channels))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """[(N, C, H, W)] -> p2 (N, out, 4H, 4W), p3 (2H, 2W), p4 (H, W), p5 (H/2, W/2), p6 (H/4, W/4)"""
        (last,) = maps
        return _with_p6({level: getattr(self, level)(last) for level in SCALES})


class MultiBlockPyramid(nn.Module):
    """One level from the map of one block each: blocks 7, 11, 15, 23 of ViT-L resized by 4, 2, 1 and 0.5.

    Source: arXiv 2412.04077 (its detection set-up, after Rein, arXiv 2312.04265).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        for level in SCALES:
            self.add_module(level, _lateral(in_channels, out_channels))

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Four (N, C, H, W) -> p2 (N, out, 4H, 4W), p3 (2H, 2W), p4 (H, W), p5 (H/2, W/2), p6 (H/4, W/4)"""
        features = {}
        for (level, scale), x in zip(SCALES.items(), maps, strict=True):
            # Channels are reduced before resizing: a 1 x 1 convolution commutes with it and is cheaper on the small map.
            x = getattr(self, level)[:2](x)
            x = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            features[level] = getattr(self, level)[2:](x)
        return _with_p6(features)


def build_pyramid(maps: int, in_channels: int, out_channels: int) -> nn.Module:
    """The pyramid for this number of maps: 1 or 4.

    Raises:
        ValueError: another number of maps.
    """
    if maps not in (1, len(SCALES)):
        raise ValueError(
            f"MODEL.VIT.OUT_BLOCKS has {maps} blocks: give 1 (simple pyramid) or {len(SCALES)} (one a level)."
        )
    return (SimplePyramid if maps == 1 else MultiBlockPyramid)(in_channels, out_channels)


def _lateral(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


def _with_p6(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**features, "p6": F.max_pool2d(features["p5"], kernel_size=1, stride=2)}
