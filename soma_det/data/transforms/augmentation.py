"""Augmentations of the SoMA detection recipe, and the resizing for evaluation.

The recipe (arXiv 2412.04077; github.com/ysj9909/SoMA, DGOD/configs/_base_/datasets/daytime_clear_1024x1024.py): resize
so that the image fits into 0.1 to 2.0 times the crop, crop, flip, pad with gray 114, distort colors. One thing differs:
images are resized with Pillow's bilinear filter, as everywhere in Detectron2, which averages where it shrinks; OpenCV's
takes four pixels and skips the rest.
"""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from soma_det.data.transforms.photometric import PhotometricDistortion

PAD_VALUE = 114.0  # gray level


def build_train_augmentation(
    *,
    scale_range: Sequence[float],
    crop_size: Sequence[int],
    photometric: bool,
    flip: bool,
    first: Sequence[T.Augmentation] = (),
    cropped: Sequence[T.Augmentation] = (),
) -> list[T.Augmentation]:
    """The training augmentations; images come out at exactly ``crop_size``, as float32 if ``photometric``, else uint8.

    Args:
        scale_range: limits of the random resize. At 1 the image just fits into the crop, keeping its proportions.
        crop_size: (height, width) in pixels.
        photometric: distort brightness, contrast, saturation, hue and channel order; needs RGB.
        flip: flip half of the images horizontally.
        first: augmentations of the whole image, before the recipe's.
        cropped: augmentations of the crop, before it is padded.

    Raises:
        ValueError: a size or scale that is not positive, or limits in the wrong order.
    """
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"INPUT.AUGMENTATION.SCALE_RANGE is {list(scale_range)}: give [min, max] with 0 < min <= max.")
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"INPUT.AUGMENTATION.CROP_SIZE is {list(crop_size)}: give [height, width] in pixels.")
    height, width = crop_size
    return [
        *first,
        T.ResizeScale(*scale_range, target_height=height, target_width=width),
        T.RandomCrop("absolute", (height, width)),  # does nothing along a side that is already shorter
        *([T.RandomFlip()] if flip else []),
        *cropped,
        PadRightBottom(height, width),
        *([PhotometricDistortion()] if photometric else []),
    ]


def build_test_augmentation(*, min_size: int, max_size: int) -> list[T.Augmentation]:
    """Resize the shorter side to ``min_size`` pixels (0: not at all), to less where the longer would pass ``max_size``.

    Raises:
        ValueError: ``max_size`` is smaller than ``min_size``, or a size is negative.
    """
    if not 0 <= min_size <= max_size:
        raise ValueError(f"INPUT.MIN_SIZE_TEST is {min_size} and MAX_SIZE_TEST {max_size}: give 0 <= MIN <= MAX.")
    return [T.ResizeShortestEdge(min_size, max_size, "choice")]


class PadRightBottom(T.Augmentation):
    """Pads an image that is not larger than (height, width) to that size, at the right and the bottom, with gray."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The padding that this image needs."""
        height, width = image.shape[:2]
        return T.PadTransform(0, 0, self.width - width, self.height - height, width, height, pad_value=PAD_VALUE)
