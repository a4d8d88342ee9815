"""Which heights and widths of images a timm model takes, and padding to them."""

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from timm.models.hiera import Hiera
from torch import Tensor


class InputSize(NamedTuple):
    """What a model asks of its input, in pixels: one ``fixed`` (height, width), or multiples of a number."""

    fixed: tuple[int, int] | None = None
    multiple: int = 1

    def pad(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same with zeros at the right and the bottom: the mean color of normalized images.

        Raises:
            ValueError: the image is larger than the fixed size.
        """
        height, width = x.shape[-2:]
        full = self.fixed or (_next(height, self.multiple), _next(width, self.multiple))
        if height > full[0] or width > full[1]:
            raise ValueError(
                f"An image has {height} x {width} pixels, and this model takes {full[0]} x {full[1]} at most: set "
                "MODEL.VIT.IMG_SIZE to the largest input, or lower INPUT.AUGMENTATION.CROP_SIZE, INPUT.MIN_SIZE_TEST "
                "and INPUT.MAX_SIZE_TEST."
            )
        return x if full == (height, width) else F.pad(x, (0, full[1] - width, 0, full[0] - height))


def input_size(model: Any) -> InputSize:
    """What one of timm's models asks of its input."""
    if isinstance(model, Hiera):  # which reorders its tokens for one size
        height, width = (n * stride for n, stride in zip(model.tokens_spatial_shape, model.patch_stride, strict=True))
        return InputSize((height, width))
    if getattr(getattr(model, "patch_embed", None), "strict_img_size", False):
        return InputSize(tuple(model.patch_embed.img_size))
    # timm's Swin shifts the map before it pads it to whole windows, so that the first rows would see the last ones.
    stages = zip(getattr(model, "layers", ()), getattr(model, "feature_info", ()))
    edges = [info["reduction"] * edge for stage, info in stages for block in stage.blocks for edge in block.window_size]
    return InputSize(multiple=math.lcm(*edges))


def _next(pixels: int, multiple: int) -> int:
    return -(-pixels // multiple) * multiple
