"""Rain: distant rain, falling drops, drops on the windshield and the wet road."""

from collections.abc import Sequence

import cv2
import numpy as np

from soma_det.weather.depth import FOCAL_SHARE
from soma_det.weather.fog import fog
from soma_det.weather.radiance import on_radiance

Point = tuple[float, float]  # (x, y), pixels


@on_radiance
def rain_veil(image: np.ndarray, depth: np.ndarray, rate: float, airlight: Sequence[float]) -> np.ndarray:
    """Attenuation by rain too far away to be seen as drops: fog of extinction 0.312 R^0.67 per km (Weber et al., 2015).

    rate R in mm/h, from drizzle (2) to a cloudburst (100). Spray and mist near the road multiply the extinction by 3:
    images from cars show less distance than the drops alone would hide. Rain ends at the clouds, here 300 m away.

    Raises:
        ValueError: the rate is negative.
    """
    if rate < 0.0:
        raise ValueError(f"The rain rate is at least 0 mm/h, not {rate}.")
    extinction = 3.0 * 0.312 * rate**0.67 / 1000.0
    return fog(image, np.minimum(depth, 300.0), 3.912 / max(extinction, 1e-9), airlight)


@on_radiance
def rain_streaks(
    image: np.ndarray, depth: np.ndarray, rng: np.random.Generator, rate: float, light: float, slant: float = 0.0
) -> np.ndarray:
    """Falling drops, which the exposure draws into streaks (Garg and Nayar, Vision and Rain, 2007).

    A drop refracts the sky and so is a little brighter than what it hides, and lets the background through. Drops are
    placed evenly in the volume before the camera; one behind the scene's surface is hidden. light is the radiance that
    drops show, slant the tangent of the streaks' angle.
    """
    height, width = image.shape[:2]
    alpha = np.zeros((height, width), np.float32)
    distance = 1.5 + 28.0 * np.sqrt(rng.random(int(14 * rate)))
    x, y = rng.uniform(-0.05, 1.05, len(distance)) * width, rng.uniform(-0.2, 1.05, len(distance)) * height
    diameter = rng.uniform(0.0012, 0.003, len(distance))
    focal = FOCAL_SHARE * width
    length = focal * 9.0 / 90.0 / distance  # a drop falls at 9 m/s, exposed for 1/90 s
    for d, u, v, wide, long in zip(
        distance, x, y, diameter * focal / distance, length * rng.uniform(0.6, 1.2, len(distance))
    ):
        _add_streak(alpha, depth, d, (u, v), (u + slant * long, v + long), wide)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 0.5 * height / 270.0)[..., None]
    return image + (light - 0.6 * image) * np.minimum(alpha, 0.6)


def _add_streak(alpha: np.ndarray, depth: np.ndarray, distance: float, start: Point, end: Point, wide: float) -> None:
    """Cover (H, W) of one drop, thinner than a pixel in most cases, hence fainter rather than narrower."""
    height, width = alpha.shape
    row, column = int((start[1] + end[1]) / 2), int((start[0] + end[0]) / 2)
    if not (0 <= row < height and 0 <= column < width) or depth[row, column] < distance:
        return
    first, last = ((round(u * 16), round(v * 16)) for u, v in (start, end))
    cv2.line(alpha, first, last, min(0.55, 0.12 + 0.45 * wide), max(1, round(wide)), cv2.LINE_8, 4)


@on_radiance
def lens_drops(image: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Drops on the windshield: each shows the scene upside down, wide and out of focus (Halimeh and Roser, 2009)."""
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(
        cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), (0, 0), height / 200.0
    )
    wet = image.copy()
    for _ in range(count):
        center = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        _add_drop(wet, blurred, center, height * float(rng.uniform(0.010, 0.042)), float(rng.uniform(0.9, 1.5)))
    return wet


def _add_drop(image: np.ndarray, blurred: np.ndarray, center: Point, radius: float, stretch: float) -> None:
    """Paint one drop in place; `blurred` is the scene at half the size."""
    height, width = image.shape[:2]
    x0, x1 = max(0, int(center[0] - radius) - 1), min(width, int(center[0] + radius) + 3)
    y0, y1 = max(0, int(center[1] - radius * stretch) - 1), min(height, int(center[1] + radius * stretch) + 3)
    dx = np.arange(x0, x1, dtype=np.float32) - center[0]
    dy = np.arange(y0, y1, dtype=np.float32) - center[1]
    columns = ((center[0] - 4.0 * dx) * 0.5).clip(0, blurred.shape[1] - 1).astype(np.intp)
    rows = ((center[1] - 4.0 * dy) * 0.5).clip(0, blurred.shape[0] - 1).astype(np.intp)
    distance = np.sqrt((dx / radius) ** 2 + (dy[:, None] / (radius * stretch)) ** 2)
    cover = np.clip((1.0 - distance) * radius, 0.0, 0.9)[..., None].astype(np.float32)
    refracted = blurred[rows[:, None], columns] * (1.0 - 0.35 * np.minimum(distance, 1.0) ** 4)[..., None].astype(
        np.float32
    )
    image[y0:y1, x0:x1] += cover * (refracted - image[y0:y1, x0:x1])


@on_radiance
def wet_road(
    image: np.ndarray, road: np.ndarray, depth: np.ndarray, rng: np.random.Generator, wetness: float = 1.0
) -> np.ndarray:
    """A film of water on the road: darker asphalt that mirrors what stands beyond it, smeared downwards.

    The share mirrored is Fresnel's for water in Schlick's approximation (1994), R = 0.02 + 0.98 (1 - cos)^5; at 30 m
    the road is seen so flat that most light is mirrored. Each column of road (H, W) bool is mirrored at its upper end.
    """
    height, width = image.shape[:2]
    cosine = np.minimum(1.5 / np.maximum(depth, 1.5), 1.0)
    ripples = cv2.resize(rng.random((24, 40), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    share = (0.06 + 0.94 * (1.0 - cosine) ** 5) * wetness * (0.45 + 0.55 * np.clip(ripples, 0.0, 1.0))
    share = cv2.GaussianBlur((share * road).astype(np.float32), (0, 0), height / 270.0) * road
    keep = (1.0 - 0.45 * wetness * road) * (1.0 - share)
    return image * keep[..., None].astype(np.float32) + _mirrored(image, road) * share[..., None].astype(np.float32)


def _mirrored(image: np.ndarray, road: np.ndarray) -> np.ndarray:
    """What a rippled film of water mirrors: each column flipped at the upper end of its road, smeared; at half size."""
    height, width = image.shape[:2]
    small = cv2.resize(image, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
    half = road[::2, ::2]
    rows = np.arange(len(half), dtype=np.int32)[:, None]
    contact = np.maximum.accumulate(np.where(half, -1, rows), axis=0)
    source = np.clip(2 * contact - rows, 0, len(half) - 1)
    flipped = small[source, np.arange(half.shape[1])]
    flipped = cv2.GaussianBlur(flipped, (0, 0), sigmaX=height / 400.0, sigmaY=height / 64.0)
    return cv2.resize(flipped, (width, height), interpolation=cv2.INTER_LINEAR)
