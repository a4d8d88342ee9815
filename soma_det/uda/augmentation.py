"""The strong view of an image: gray, blurred, with noise or holes. Nothing in it moves.

Sources: Liu et al., Unbiased Teacher, arXiv 2102.09480 (gray, blur, erasing); Hoyer et al., MIC, arXiv 2212.01322
(masked squares).
"""

from collections.abc import Mapping

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from soma_det.data.transforms.photometric import PhotometricDistortion

HOLE = 114.0  # gray level, that of the padding
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of R, G and B


class Recolor(T.Augmentation):
    """A change of gray levels; subclasses draw it."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The change of this image."""
        return T.ColorTransform(self.draw(*image.shape[:2]))

    def draw(self, height: int, width: int):
        """A function of an image (H, W, 3) that gives a new one of its shape and dtype."""
        raise NotImplementedError


class Gray(Recolor):
    """All three channels become the image's luma."""

    def draw(self, height: int, width: int):
        """Always the same."""
        return lambda image: np.repeat(image @ LUMA[:, None], 3, 2).astype(image.dtype)


class Blur(Recolor):
    """Gaussian blur of a sigma of 0.1 to 2 pixels."""

    def draw(self, height: int, width: int):
        """Draws sigma."""
        sigma = np.random.uniform(0.1, 2.0)
        return lambda image: cv2.GaussianBlur(image, (0, 0), sigma)


class Erase(Recolor):
    """A rectangle of 5 to 20 percent of the image, with sides in a ratio of 0.3 to 3.3, becomes noise."""

    def draw(self, height: int, width: int):
        """Draws the rectangle and the noise."""
        area, ratio = np.random.uniform(0.05, 0.2) * height * width, np.exp(np.random.uniform(*np.log([0.3, 3.3])))
        h, w = min(round(np.sqrt(area * ratio)), height), min(round(np.sqrt(area / ratio)), width)
        top, left = np.random.randint(height - h + 1), np.random.randint(width - w + 1)
        noise = np.random.uniform(0, 255, (h, w, 3))

        def erase(image: np.ndarray) -> np.ndarray:
            image = image.copy()
            image[top : top + h, left : left + w] = noise
            return image

        return erase


class MaskSquares(Recolor):
    """Every square of a grid becomes gray with the probability ``share``."""

    def __init__(self, share: float, size: int):
        super().__init__()
        self.share, self.size = share, size

    def draw(self, height: int, width: int):
        """Draws which squares."""
        rows, columns = -(-height // self.size), -(-width // self.size)
        masked = np.random.random((rows, columns)) < self.share
        masked = masked.repeat(self.size, 0).repeat(self.size, 1)[:height, :width]
        return lambda image: np.where(masked[..., None], np.asarray(HOLE, image.dtype), image)


def strong_source(cfg: CfgNode) -> list[T.Augmentation]:
    """What source images get after the recipe's augmentation, which has changed their colors already."""
    strong = cfg.UDA.STRONG
    return _in_shares({Gray: strong.GRAY, Blur: strong.BLUR, Erase: strong.ERASE})


def strong_target(cfg: CfgNode) -> list[T.Augmentation]:
    """What makes the strong view of a target image from its weak one, which is cut, flipped and padded."""
    strong = cfg.UDA.STRONG
    colors = [PhotometricDistortion()] if cfg.INPUT.AUGMENTATION.PHOTOMETRIC else []
    changes = _in_shares({Gray: strong.GRAY, Blur: strong.BLUR})
    return [*colors, *changes, MaskSquares(strong.MASK, strong.MASK_BLOCK)]


def _in_shares(shares: Mapping[type[Recolor], float]) -> list[T.Augmentation]:
    return [T.RandomApply(change(), share) for change, share in shares.items()]
