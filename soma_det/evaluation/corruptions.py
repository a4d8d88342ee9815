"""Corrupted test images: the 15 corruptions of the robustness benchmark at five severities, and simulated weather.

Source: Michaelis et al., Benchmarking Robustness in Object Detection: Autonomous Driving when Winter is Coming, arXiv
1907.07484. An image is corrupted as its file has it, before any resizing.
"""

import contextlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.data import transforms as T

from soma_det.weather import DOMAIN_EFFECTS, apply_weather

KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
BENCHMARK = tuple(name for names in KINDS.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)
WEATHER = {f"simulated_{domain}": domain for domain in DOMAIN_EFFECTS if domain != "daytime_clear"}
NAMES = (*BENCHMARK, *WEATHER)


class Corruption(T.Augmentation):
    """Corrupts every image, always the same one in the same way: randomness follows from its pixels.

    Args:
        name: of NAMES. Simulated weather has no severity and takes 1 alone.
        severity: 1 to 5.
        image_format: "RGB" or "BGR", of the images that come in. The benchmark's published figures were made on BGR.

    Raises:
        ValueError: there is no such corruption or severity.
        ImportError: imagecorruptions is not installed.
    """

    def __init__(self, name: str, severity: int, image_format: str = "RGB"):
        super().__init__()
        check_corruption(name, severity)
        self.name, self.severity, self.image_format = name, severity, image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The corruption of this image."""
        return T.ColorTransform(lambda pixels: corrupt(pixels, self.name, self.severity, self.image_format))


def check_corruption(name: str, severity: int) -> None:
    """Raise a ValueError for an unknown corruption or severity, an ImportError where its package is missing."""
    allowed: Sequence[int] = (1,) if name in WEATHER else SEVERITIES
    if name not in NAMES:
        raise ValueError(f"There is no corruption {name!r}: choose from {', '.join(NAMES)}.")
    if severity not in allowed:
        raise ValueError(f"The severity of {name} is {severity}: choose from {', '.join(map(str, allowed))}.")
    if name in BENCHMARK:
        _package()


def corrupt(image: np.ndarray, name: str, severity: int, image_format: str = "RGB") -> np.ndarray:
    """A corrupted copy of an image (H, W, 3), uint8, of at least 32 pixels a side; its pixels alone seed it."""
    if name in WEATHER:
        rgb = np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1])
        changed = apply_weather(rgb, None, WEATHER[name], np.random.default_rng(_seed_of(rgb)))
        return changed if image_format == "RGB" else np.ascontiguousarray(changed[:, :, ::-1])
    with _seeded(_seed_of(image)):
        return np.asarray(_package().corrupt(image, severity=severity, corruption_name=name), dtype=np.uint8)


def _seed_of(image: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(image).tobytes())


def _package():
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(
            "The benchmark's corruptions need imagecorruptions: pip install 'soma_det[corruptions]'."
        ) from error
    return imagecorruptions


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, numpy's global generator, which the package draws from, is seeded; afterwards it is as before."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
