"""Finishing touches per pixel: ground texture, cast and contact shadows, darker feet, and the haze of a clear day."""

import cv2
import numpy as np

from synthdrive.camera import Camera, clip_near
from synthdrive.canvas import GROUND, ROAD, Canvas, Daylight
from synthdrive.sky import fractal_noise
from synthdrive.surroundings import Thing
from synthdrive.traffic import Actor

_HAZE = (205.0, 214.0, 224.0)


def finish(
    canvas: Canvas, depth: np.ndarray, actors: list[Actor], things: list[Thing], rng: np.random.Generator
) -> np.ndarray:
    """The image (H, W, 3) uint8 of a canvas, with the effects that are computed per pixel."""
    camera = canvas.camera
    ids = canvas.ids()
    ground = (ids == GROUND) | (ids == ROAD)
    level = np.where(ground, _shadows(canvas, actors, things), _darker_feet(camera, depth))
    top = max(0, int(camera.horizon))
    level[top:] *= np.where(ground[top:], _ground_texture(camera, top, rng), np.float32(1.0))
    clear = np.exp(depth * np.float32(-1.0 / rng.uniform(500.0, 2500.0)))
    clear[np.isinf(depth)] = 1.0  # the sky is painted with its own haze
    image = cv2.multiply(canvas.image().astype(np.float32), cv2.merge([level * clear] * 3))
    image += cv2.merge([(1.0 - clear) * np.float32(channel) for channel in _HAZE])
    return cv2.convertScaleAbs(image)


def _shadows(canvas: Canvas, actors: list[Actor], things: list[Thing]) -> np.ndarray:
    """Brightness (H, W) in [0, 1] of the ground under shadows that the sun casts and under vehicles."""
    camera, daylight = canvas.camera, canvas.daylight
    mask = np.full((camera.image_height, camera.image_width), 255, np.uint8)
    cast = int(255 * daylight.shadow)
    for thing in things:
        if thing.shadow is not None:
            _fill(mask, camera, _crown_shadow(thing, daylight), cast)
    for actor in actors:
        foot = actor.footprint(-0.05)
        _fill(mask, camera, np.concatenate([foot, _fall(foot, actor.height * 0.92, daylight)]), cast)
    for actor in actors:
        heavy = actor.width > 1.0
        _fill(mask, camera, actor.footprint(0.12 if heavy else -0.02), int(min(cast, 255) * (0.42 if heavy else 0.72)))
    return cv2.GaussianBlur(mask, (0, 0), 1.1).astype(np.float32) / 255.0


def _fall(points: np.ndarray, height: float, daylight: Daylight) -> np.ndarray:
    """Where the shadow of things this high over the ground points falls."""
    return points - np.array(daylight.sun) * (height / daylight.sun[1]) * (1.0, 0.0, 1.0)


def _crown_shadow(thing: Thing, daylight: Daylight) -> np.ndarray:
    radius, height = thing.shadow
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    ring = np.stack([thing.foot[0] + radius * np.cos(angle), 0 * angle, thing.foot[1] + radius * np.sin(angle)], axis=1)
    return _fall(ring, height, daylight)


def _fill(mask: np.ndarray, camera: Camera, points: np.ndarray, level: int) -> None:
    """Fill the convex hull of ground points (N, 3)."""
    hull = cv2.convexHull(points[:, [0, 2]].astype(np.float32))[:, 0]
    corners = clip_near(np.stack([hull[:, 0], 0 * hull[:, 0], hull[:, 1]], axis=1).astype(np.float64))
    if len(corners) >= 3:
        outline = np.clip(camera.project(corners), -9000, 9000)
        cv2.fillPoly(mask, [np.round(outline * 16 - 8).astype(np.int32)], level, cv2.LINE_AA, 4)


def _ground_texture(camera: Camera, top: int, rng: np.random.Generator) -> np.ndarray:
    """Brightness (H - top, W) of grain and stains fixed to the ground, fading where they would be finer than pixels."""
    noise = fractal_noise()
    rows = np.arange(top, camera.image_height, dtype=np.float32) + 0.5
    z = camera.focal * camera.height / np.maximum(rows - camera.horizon, 0.5)
    x = (np.arange(camera.image_width, dtype=np.float32) + 0.5 - camera.center_x) * (z / camera.focal)[:, None]
    offset = rng.integers(0, 512, 2)
    total = np.ones((len(rows), camera.image_width), np.float32)
    for scale, gain, reach in ((60.0, 0.16, 7.0), (9.0, 0.12, 40.0), (1.6, 0.10, 200.0)):
        column = (x * scale).astype(np.int32) + offset[0] & 511
        row = ((z * scale * 0.6).astype(np.int32) + offset[1] & 511)[:, None]
        total += (noise[row, column] - 0.5) * (gain * np.minimum(1.0, reach / z)).astype(np.float32)[:, None]
    return total


def _darker_feet(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """Brightness (H, W), lower near the ground, where less of the sky is visible."""
    rows = (np.arange(camera.image_height, dtype=np.float32) + 0.5)[:, None]
    slope = ((rows - camera.horizon) / camera.focal).astype(np.float32)
    height = camera.height - slope * np.minimum(depth, np.float32(2000.0))
    return np.clip(0.80 + height * (0.20 / 0.9), 0.80, 1.0).astype(np.float32)
