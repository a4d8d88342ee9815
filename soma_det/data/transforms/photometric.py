"""Photometric distortion: random brightness, contrast, saturation, hue and channel order.

From SSD (Liu et al., ECCV 2016) in the form of mmdet's PhotoMetricDistortion, which the SoMA recipe uses. It works on
floats and clips nothing: gray levels may leave 0 to 255.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.data import transforms as T


@dataclass(eq=False)
class PhotometricDistortion(T.Augmentation):
    """Changes brightness, contrast, saturation, hue and channel order, each in half of the images.

    Contrast comes at random before or after saturation and hue. Takes RGB images (H, W, 3), uint8; gives float32.
    """

    brightness_delta: float = 32.0  # gray levels
    contrast_range: tuple[float, float] = (0.5, 1.5)
    saturation_range: tuple[float, float] = (0.5, 1.5)
    hue_delta: float = 18.0  # degrees

    def get_transform(self, image: np.ndarray) -> "PhotometricTransform":
        """Draws the change of this image."""
        return PhotometricTransform(
            brightness=_draw(-self.brightness_delta, self.brightness_delta, otherwise=0.0),
            contrast=_draw(*self.contrast_range, otherwise=1.0),
            saturation=_draw(*self.saturation_range, otherwise=1.0),
            hue=_draw(-self.hue_delta, self.hue_delta, otherwise=0.0),
            contrast_first=bool(np.random.randint(2)),
            channels=np.random.permutation(3).tolist() if np.random.randint(2) else [0, 1, 2],
        )


@dataclass(eq=False)
class PhotometricTransform(T.ColorTransform):
    """One fixed change of colors; as a ColorTransform it moves no coordinates and changes no labels."""

    brightness: float  # gray levels to add
    contrast: float  # factor of the gray levels
    saturation: float  # factor of the saturation in HSV; above 1, saturation is limited to 1
    hue: float  # degrees to add
    contrast_first: bool  # contrast before saturation and hue, or after
    channels: Sequence[int]  # the order in which the channels come out

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> the same with the change, float32, not clipped."""
        # What acts on each gray level by itself goes through one table.
        levels = np.arange(256, dtype=np.float32) + np.float32(self.brightness)
        if self.contrast_first:
            levels *= np.float32(self.contrast)
        image = _change_colors(cv2.LUT(image, levels), self.saturation, self.hue)
        if not self.contrast_first:
            image *= np.float32(self.contrast)
        return image[:, :, self.channels]


def _change_colors(image: np.ndarray, saturation: float, hue: float) -> np.ndarray:
    """Scale the saturation and shift the hue (degrees) of an RGB image (H, W, 3), float32, 0 to 255.

    The image goes through HSV even if neither changes, as in mmdet: three negative channels come back as others.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue 0 to 360; saturation 0 to 1, more with a negative channel
    if hue:
        hsv[..., 0] += hue % 360  # up to 720, which cv2 takes as an angle; below 0 it does not
    if saturation != 1:
        hsv[..., 1] *= saturation
    if saturation > 1:
        np.minimum(hsv[..., 1], 1, out=hsv[..., 1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _draw(low: float, high: float, *, otherwise: float) -> float:
    return np.random.uniform(low, high) if np.random.randint(2) else otherwise
