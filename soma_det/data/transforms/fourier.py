"""Mixing the Fourier amplitudes of two training images: style changes, the phase with the shapes stays.

Source: Xu et al., A Fourier-based framework for domain generalization, CVPR 2021, arXiv 2105.11120.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T

from soma_det.utils.images import read_image


class FourierMixing(T.Augmentation):
    """Moves the amplitudes of a share of the images towards those of another training image.

    Takes images (H, W, 3), uint8. How far each one moves is drawn from 0 to ``strength``.

    Args:
        probability: share of the images that are changed.
        strength: 1 can replace the amplitudes altogether, which draws ghosts of the other image; 0 changes nothing.
        files: image files to take amplitudes from.
        image_format: as INPUT.FORMAT.

    Raises:
        ValueError: probability or strength is outside 0 to 1, or there are no files.
    """

    def __init__(self, probability: float, strength: float, files: Sequence[str], image_format: str = "RGB"):
        super().__init__()
        for name, value in (("PROBABILITY", probability), ("STRENGTH", strength)):
            if not 0 <= value <= 1:
                raise ValueError(f"INPUT.AUGMENTATION.FOURIER.{name} is {value}: give a number from 0 to 1.")
        if not files:
            raise ValueError("INPUT.AUGMENTATION.FOURIER mixes with other training images, and there are none.")
        self.probability, self.strength, self.files, self.image_format = probability, strength, files, image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the other image and how much of its amplitudes this image gets."""
        if np.random.uniform() >= self.probability:
            return T.NoOpTransform()
        file, share = self.files[np.random.randint(len(self.files))], np.random.uniform(0, self.strength)
        height, width = image.shape[:2]
        other = cv2.resize(read_image(file, self.image_format), (width, height), interpolation=cv2.INTER_AREA)
        return T.ColorTransform(lambda pixels: mix_amplitudes(pixels, other, share))


def mix_amplitudes(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """The image with the amplitudes (1 - share) |F(image)| + share |F(other)| and its own phase.

    Args:
        image, other: (H, W, 3) uint8.
        share: 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    spectra = [np.fft.rfft2(pixels.astype(np.float32), axes=(0, 1)) for pixels in (image, other)]
    own, its = (np.abs(spectrum) for spectrum in spectra)
    factor = 1 + share * (its - own) / np.maximum(own, 1e-6)
    mixed = np.fft.irfft2(spectra[0] * factor, s=image.shape[:2], axes=(0, 1))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
