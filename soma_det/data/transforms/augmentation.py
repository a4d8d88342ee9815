"""Augmentations of the SoMA detection recipe, and the resizing for evaluation.

The recipe (arXiv 2412.04077; github.com/ysj9909/SoMA, DGOD/configs/_base_/datasets/daytime_clear_1024x1024.py): resize
so that the image fits into 0.1 to 2.0 times the crop, crop, flip, pad with gray 114, distort colors. Here the colors
are distorted before padding, which costs less and leaves the padding gray.
"""

from typing import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T

PAD_VALUE = 114.0  # gray level


def build_train_augmentation(
    *, scale_range: Sequence[float], crop_size: Sequence[int], photometric: bool, flip: bool
) -> list[T.Augmentation]:
    """The training augmentations; images come out at exactly ``crop_size``, as uint8.

    Args:
        scale_range: limits of the random resize. At 1 the image just fits into the crop, keeping its proportions.
        crop_size: (height, width) in pixels.
        photometric: distort brightness, contrast, saturation, hue and channel order; needs RGB.
        flip: flip half of the images horizontally.

    Raises:
        ValueError: a size or scale that is not positive, or limits in the wrong order.
    """
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"INPUT.AUGMENTATION.SCALE_RANGE is {list(scale_range)}: give [min, max] with 0 < min <= max.")
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"INPUT.AUGMENTATION.CROP_SIZE is {list(crop_size)}: give [height, width] in pixels.")
    height, width = crop_size
    augmentations = [
        T.ResizeScale(scale_range[0], scale_range[1], target_height=height, target_width=width),
        T.RandomCrop("absolute", (height, width)),  # does nothing along a side that is already shorter
    ]
    if flip:
        augmentations.append(T.RandomFlip())
    if photometric:
        augmentations.append(PhotometricDistortion())
    return augmentations + [T.FixedSizeCrop((height, width), pad_value=PAD_VALUE)]  # crops nothing more: pads


def build_test_augmentation(*, min_size: int, max_size: int) -> list[T.Augmentation]:
    """Resize the shorter side to ``min_size`` pixels, or the longer to ``max_size`` if it would get longer than that.

    With ``min_size`` 0 the image keeps its size.

    Raises:
        ValueError: ``max_size`` is smaller than ``min_size``, or a size is negative.
    """
    if not 0 <= min_size <= max_size:
        raise ValueError(
            f"INPUT.MIN_SIZE_TEST is {min_size} and MAX_SIZE_TEST {max_size}: give 0 <= MIN <= MAX, pixels."
        )
    return [T.ResizeShortestEdge([min_size, min_size], max_size, "choice")]


class PhotometricDistortion(T.Augmentation):
    """Random brightness, contrast, saturation, hue and channel order, each changed in half of the images.

    From SSD (Liu et al., ECCV 2016) in the form of mmdet's PhotoMetricDistortion: its ranges, and its order, in which
    contrast comes at random before or after saturation and hue. Takes RGB images (H, W, 3), uint8.
    """

    def __init__(
        self,
        brightness_delta: float = 32.0,  # gray levels
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: float = 18.0,  # degrees
    ):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the change of this image."""
        return PhotometricTransform(
            brightness=_draw(-self.brightness_delta, self.brightness_delta, otherwise=0.0),
            contrast=_draw(*self.contrast_range, otherwise=1.0),
            saturation=_draw(*self.saturation_range, otherwise=1.0),
            hue=_draw(-self.hue_delta, self.hue_delta, otherwise=0.0),
            contrast_first=bool(np.random.randint(2)),
            channels=np.random.permutation(3) if np.random.randint(2) else np.arange(3),
        )


class PhotometricTransform(T.Transform):
    """One fixed change of colors; moves nothing.

    Args:
        brightness: gray levels to add.
        contrast: factor of the gray levels.
        saturation: factor of the saturation in HSV, which ends at 1.
        hue: degrees to add to the hue.
        contrast_first: whether contrast comes before saturation and hue, or after.
        channels: the order in which the channels come out.
    """

    def __init__(
        self,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        contrast_first: bool,
        channels: Sequence[int],
    ):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> the same with the change."""
        # What acts on each gray level by itself goes through one table; HSV needs floats to stay exact.
        levels = np.arange(256, dtype=np.float32) + np.float32(self.brightness)
        levels = np.clip(levels * self.contrast if self.contrast_first else levels, 0, 255)
        last = 1.0 if self.contrast_first else self.contrast
        if self.saturation == 1 and self.hue == 0:
            image = cv2.LUT(image, cv2.convertScaleAbs(levels, alpha=last).reshape(256))
        else:
            image = _turn_colors(cv2.LUT(image, levels.astype(np.float32)), self.saturation, self.hue)
            image = cv2.convertScaleAbs(image, alpha=last)  # rounds, and cuts off above 255; nothing is negative here
        return image[:, :, self.channels]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation  # the default would color the labels


def _turn_colors(image: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    """Scale the saturation and shift the hue (degrees) of an RGB image (H, W, 3), float32, 0 to 255."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue 0 to 360, saturation 0 to 1, value 0 to 255
    hsv[..., 0] += hue % 360  # up to 720, which is understood; below 0 is not
    hsv[..., 1] *= saturation
    np.minimum(hsv[..., 1], 1, out=hsv[..., 1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _draw(low: float, high: float, *, otherwise: float) -> float:
    return np.random.uniform(low, high) if np.random.randint(2) else otherwise
