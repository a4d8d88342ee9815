"""sRGB and linear radiance, and effects that take images of either kind."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np


def to_linear(image: np.ndarray) -> np.ndarray:
    """uint8 sRGB (IEC 61966-2-1) to linear float32 in [0, 1]."""
    return _SRGB_TO_LINEAR[image]


def to_srgb(radiance: np.ndarray) -> np.ndarray:
    """Linear float32 to uint8 sRGB; radiance above 1 saturates."""
    roots = np.sqrt(np.clip(radiance, 0.0, 1.0), dtype=np.float32)
    return _ROOT_TO_SRGB[(roots * (len(_ROOT_TO_SRGB) - 1) + 0.5).astype(np.uint16)]


def on_radiance(effect: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Let an effect on linear radiance take uint8 images too, and check its input."""

    @wraps(effect)
    def run(image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"A weather effect wants an image (H, W, 3) in RGB, not an array of shape {image.shape}.")
        if image.dtype == np.uint8:
            return to_srgb(effect(to_linear(image), *args, **kwargs))
        return effect(image.astype(np.float32, copy=False), *args, **kwargs)

    return run


def _decoding_table() -> np.ndarray:
    """Linear radiance of each of the 256 codes."""
    encoded = np.arange(256, dtype=np.float64) / 255.0
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _encoding_table(size: int) -> np.ndarray:
    """Code of each square root of radiance in [0, 1]: nearly even steps, so a table of a few thousand is exact."""
    linear = np.linspace(0.0, 1.0, size) ** 2
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return (encoded * 255.0 + 0.5).astype(np.uint8)


_SRGB_TO_LINEAR = _decoding_table()
_ROOT_TO_SRGB = _encoding_table(16384)
