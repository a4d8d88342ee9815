"""Photometric distortion: random brightness, contrast, saturation, hue and channel order."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T


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
