"""Dusk and night: the sky after sunset, headlamps, street lamps and lit windows."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from soma_det.weather.depth import FOCAL_SHARE
from soma_det.weather.radiance import on_radiance

_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB (ITU-R BT.709)
_BEAM_COLOR = np.array([1.0, 0.94, 0.84], np.float32)


@on_radiance
def blue_shift(image: np.ndarray, share: float) -> np.ndarray:
    """Night's tone: a share of each color is replaced by bluish gray (Jensen et al., Night Rendering, 2000)."""
    mixing = (1.0 - share) * np.eye(3) + share * np.outer((0.82, 0.96, 1.24), _LUMINANCE)
    return cv2.transform(image, mixing.astype(np.float32))


@on_radiance
def low_sky(image: np.ndarray, depth: np.ndarray, top: Sequence[float], bottom: Sequence[float]) -> np.ndarray:
    """Color the sky (depth inf) by factors from `top` down to the horizon's `bottom`, as after sunset."""
    sky = np.isinf(depth)
    if not sky.any():
        return image
    last = max(1, int(np.flatnonzero(sky.any(axis=1))[-1]))
    share = np.minimum(np.arange(image.shape[0], dtype=np.float32) / last, 1.0)[:, None, None] ** 2
    factor = np.asarray(top, np.float32) * (1.0 - share) + np.asarray(bottom, np.float32) * share
    return np.where(sky[..., None], image * factor, image)


@on_radiance
def headlamps(image: np.ndarray, depth: np.ndarray, power: float = 1.0, horizon: float = 0.47) -> np.ndarray:
    """Light that the own car's low beam adds: inverse square of the distance, under a cut-off just below the horizon.

    The image stands for the albedo of what it shows. power 1 doubles the light of a clear day at 8 m; horizon is the
    share of the height at which the road meets the sky.
    """
    return image + image * (power * _low_beam(image.shape, depth, horizon))[..., None] * _BEAM_COLOR


def _low_beam(shape: tuple[int, ...], depth: np.ndarray, horizon: float) -> np.ndarray:
    """Irradiance (H, W) of the own low beam, 1 at its brightest 8 m ahead."""
    height, width = shape[:2]
    across = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) / 0.42
    row = (np.arange(height, dtype=np.float32) + 0.5) / height - horizon
    cut_off = (0.10 + 0.90 / (1.0 + np.exp(-(row + 0.01) / 0.018)))[:, None]
    near = np.minimum(8.0 / np.maximum(depth, 1.0), 1.6) ** 2
    return near * cut_off * np.exp(-0.5 * across**2)[None, :]


@on_radiance
def street_lighting(image: np.ndarray, depth: np.ndarray, lights: Sequence[Any], power: float = 1.0) -> np.ndarray:
    """Light that lamps throw on their surroundings, falling with the square of the distance from each lamp.

    lights: see `apply_weather`; distances in the world follow from the depths under a focal length of 0.95 image
    widths. Only the nearest six lamps of kind "street" count: others shine away from what the image shows.
    """
    street = sorted((light for light in lights if light.kind == "street"), key=lambda light: light.depth)[:6]
    if not street:
        return image
    pools = np.stack([_pool_of_light(depth, light) for light in street], axis=2)
    colors = np.asarray([light.color for light in street], np.float32)
    return image + image * (power * (pools @ colors))


def _pool_of_light(depth: np.ndarray, light: Any) -> np.ndarray:
    """Irradiance (H, W) around one lamp, relative to that 4 m away from a headlamp's power."""
    height, width = depth.shape
    focal = FOCAL_SHARE * width
    finite = np.minimum(depth, 4.0 * light.depth + 100.0)
    u, v = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    dx = (u - light.x) * (finite / focal)
    dy = (v - light.y) * (finite / focal)
    square = dx * dx + 0.35 * dy * dy + 0.5 * (finite - light.depth) ** 2
    return light.power * 16.0 / (16.0 + square)


@on_radiance
def lamps(image: np.ndarray, lights: Sequence[Any], power: float = 1.0, glow: float = 1.0) -> np.ndarray:
    """Lamps that look into the camera, with the halo that eye, lens and air give them.

    The halo is a sum of wide and narrow blurs, an approximation of the glare spread function (Spencer et al., 1995)
    and, with a larger `glow`, of multiple scattering in mist (Narasimhan and Nayar, Shedding Light on the Weather,
    2003).
    """
    if not lights:
        return image
    sources = _draw_sources(image.shape, lights, power)
    return image + sources + glow * _halo(sources)


def _draw_sources(shape: tuple[int, ...], lights: Sequence[Any], power: float) -> np.ndarray:
    """Radiance (H, W, 3) of the bare lamps."""
    sources = np.zeros(shape, np.float32)
    scale = shape[0] / 270.0
    for light in sorted(lights, key=lambda light: -light.depth):
        peak = tuple(float(channel) * power * light.power * 9.0 for channel in light.color)
        half = (max(light.width / 2, 0.55 * scale), max(light.height / 2, 0.55 * scale))
        center, axes = (int(light.x * 16) - 8, int(light.y * 16) - 8), (int(half[0] * 16), int(half[1] * 16))
        cv2.ellipse(sources, center, axes, 0, 0, 360, peak, -1, cv2.LINE_8, 4)
    return sources


def _halo(sources: np.ndarray) -> np.ndarray:
    """The sources, spread narrowly, widely and very widely; wide blurs run on small images."""
    height, width = sources.shape[:2]
    spread = 0.5 * cv2.GaussianBlur(sources, (0, 0), height / 150.0)
    for divisor, sigma, share in ((2, height / 90.0, 0.55), (4, height / 55.0, 0.55)):
        small = cv2.resize(sources, (max(1, width // divisor), max(1, height // divisor)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma)
        spread += share * cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return spread


@on_radiance
def lit_windows(image: np.ndarray, emission: np.ndarray, glow: float = 1.0) -> np.ndarray:
    """Windows that shine with radiance `emission` (H, W, 3), and a faint halo; light adds up."""
    if not emission.any():
        return image
    height, width = image.shape[:2]
    small = cv2.resize(emission, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    halo = cv2.resize(cv2.GaussianBlur(small, (0, 0), height / 110.0), (width, height), interpolation=cv2.INTER_LINEAR)
    return image + emission + 0.2 * glow * halo
