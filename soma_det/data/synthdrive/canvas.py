"""The painter's canvas: colors and, in a fourth channel, which thing is seen; depth follows from the things' planes."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from soma_det.data.synthdrive.camera import NEAR, Camera, clip_near

SUPERSAMPLING = 2
SKY, GROUND, ROAD = 0, 1, 2  # ids of the fourth channel that every scene has
_SHIFT = 4  # OpenCV's fixed-point coordinates: 1/16 pixel
_FAR_OFF = 20000.0  # pixels; keeps fixed-point coordinates of near polygons inside 32 bits


class Light(NamedTuple):
    """A lamp or lit window: center and extent in pixels, depth in meters, color RGB in [0, 1], power relative to a headlamp."""

    x: float
    y: float
    width: float
    height: float
    depth: float
    color: tuple[float, float, float]
    power: float
    kind: str  # "head", "tail", "street", "signal" or "window"


@dataclass(frozen=True)
class Daylight:
    """Sun (a unit vector towards it, with a strength) and ambient skylight; tint is the color (3,) of all light."""

    sun: np.ndarray
    strength: float
    ambient: float
    tint: np.ndarray

    def shade(self, color, normal) -> np.ndarray:
        """Lambertian color of a surface with this unit normal (3,): ambient light from above plus the sun."""
        direct = max(0.0, float(normal @ self.sun)) * self.strength
        level = self.ambient * (0.85 + 0.15 * float(normal[1])) + direct
        return np.minimum(np.asarray(color, dtype=np.float64) * level * self.tint, 255.0)

    @property
    def shadow(self) -> float:
        """Brightness of the ground in a cast shadow over that in the sun."""
        return self.ambient / (self.ambient + self.strength * max(0.05, float(self.sun[1])))


class Canvas:
    """Supersampled RGB + id picture of what a camera sees; later strokes cover earlier ones (painter's algorithm)."""

    def __init__(self, camera: Camera, daylight: Daylight) -> None:
        self.camera = camera
        self.daylight = daylight
        shape = (camera.image_height * SUPERSAMPLING, camera.image_width * SUPERSAMPLING, 4)
        self.pixels = np.zeros(shape, dtype=np.uint8)
        ground = camera.ground_plane()
        self.planes: list[np.ndarray] = [np.zeros(3), ground, ground]
        self.lights: list[tuple[Light, int]] = []

    def new_id(self, depth: float | None = None, plane: np.ndarray | None = None) -> int:
        """An id for a thing at one depth in meters, or on a plane of inverse depth."""
        if len(self.planes) > 255:
            raise RuntimeError("A scene holds at most 252 things: the id channel has 8 bits.")
        self.planes.append(np.array([0.0, 0.0, 1.0 / depth]) if plane is None else plane)
        return len(self.planes) - 1

    def fill(self, outlines: list[np.ndarray], color, ident: int) -> None:
        """Fill polygons given in pixels, each (K, 2)."""
        fixed = [_fixed(outline) for outline in outlines if len(outline) >= 3]
        if fixed:
            cv2.fillPoly(self.pixels, fixed, _paint(color, ident), cv2.LINE_8, _SHIFT)

    def polygon(self, points: np.ndarray, color, ident: int) -> None:
        """Fill a polygon given in the world, (K, 3)."""
        clipped = clip_near(points)
        if len(clipped) >= 3:
            self.fill([self.camera.project(clipped)], color, ident)

    def quads(self, quads: np.ndarray, color, ident: int) -> None:
        """Fill many world quads (N, 4, 3) of one color; those reaching behind the camera are left out."""
        quads = quads[quads[:, :, 2].min(axis=1) >= NEAR] if len(quads) else quads
        if len(quads):
            self.fill(list(self.camera.project(quads.reshape(-1, 3)).reshape(-1, 4, 2)), color, ident)

    def stroke(self, points: np.ndarray, width: float, color, ident: int, closed: bool = False) -> None:
        """A line of this width in meters through world points (K, 3)."""
        if points[:, 2].min() < NEAR:
            return
        thickness = self.pixel_width(width, float(points[:, 2].mean()))
        outline = _fixed(self.camera.project(points))
        cv2.polylines(self.pixels, [outline], closed, _paint(color, ident), thickness, cv2.LINE_8, _SHIFT)

    def disc(self, center: np.ndarray, radius: float, color, ident: int, squash: float = 1.0) -> None:
        """A disc facing the camera around a world point (3,); squash is its height over its width."""
        if center[2] < NEAR:
            return
        u, v = self.camera.project(center[None])[0]
        size = radius * self.camera.focal / center[2]
        self.blob(u, v, size, size * squash, color, ident)

    def blob(self, u: float, v: float, half_width: float, half_height: float, color, ident: int) -> None:
        """An ellipse in pixels."""
        if abs(u) > _FAR_OFF or abs(v) > _FAR_OFF:
            return
        fixed = SUPERSAMPLING * (1 << _SHIFT)
        axes = (max(8, int(half_width * fixed)), max(8, int(half_height * fixed)))
        center = (int(u * fixed) - 8, int(v * fixed) - 8)
        cv2.ellipse(self.pixels, center, axes, 0, 0, 360, _paint(color, ident), -1, cv2.LINE_8, _SHIFT)

    def limb(self, start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float, color, ident: int) -> None:
        """A tapered round rod between two world points; the radii are in meters."""
        if min(start[2], end[2]) < NEAR:
            return
        ends = self.camera.project(np.stack([start, end]))
        radii = np.array([start_radius, end_radius]) * self.camera.focal / (start[2], end[2])
        along = ends[1] - ends[0]
        side = np.array([-along[1], along[0]]) / max(1e-6, float(np.hypot(*along)))
        offsets = side * radii[:, None]
        self.fill([np.stack([ends[0] - offsets[0], ends[1] - offsets[1], ends[1] + offsets[1], ends[0] + offsets[0]])], color, ident)
        for (u, v), radius in zip(ends, radii):
            self.blob(u, v, radius, radius, color, ident)

    def pixel_width(self, width: float, depth: float) -> int:
        """Thickness on the supersampled canvas of a thing this wide (meters) at this depth, at least 1."""
        return max(1, round(width * self.camera.focal / depth * SUPERSAMPLING))

    def lamp(self, points: np.ndarray, color, power: float, kind: str, ident: int) -> None:
        """Remember the outline (K, 3) of something that shines at night."""
        if points[:, 2].min() < NEAR:
            return
        outline = self.camera.project(points)
        (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
        depth = float(points[:, 2].mean())
        light = Light((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, depth, tuple(color), power, kind)
        self.lights.append((light, ident))

    def visible_lights(self) -> list[Light]:
        """Lights whose own thing is what the picture shows at their center."""
        height, width = self.pixels.shape[:2]
        kept = []
        for light, ident in self.lights:
            column, row = int(light.x * SUPERSAMPLING), int(light.y * SUPERSAMPLING)
            if 0 <= column < width and 0 <= row < height and self.pixels[row, column, 3] == ident:
                kept.append(light)
        return kept

    def ids(self) -> np.ndarray:
        """Id of the thing seen at each pixel of the final picture, (H, W)."""
        return self.pixels[::SUPERSAMPLING, ::SUPERSAMPLING, 3]

    def depth(self) -> np.ndarray:
        """Depth along the optical axis in meters, (H, W) float32; inf is the sky."""
        planes = np.asarray(self.planes, dtype=np.float32)[self.ids()]
        height, width = planes.shape[:2]
        u = np.arange(width, dtype=np.float32) + 0.5
        v = np.arange(height, dtype=np.float32)[:, None] + 0.5
        inverse = planes[..., 0] * u + planes[..., 1] * v + planes[..., 2]
        sky = inverse <= 0.0
        return np.where(sky, np.inf, np.clip(1.0 / np.maximum(inverse, 1e-6), NEAR, 2000.0)).astype(np.float32)

    def picture(self) -> np.ndarray:
        """The anti-aliased picture, (H, W, 3) uint8 RGB."""
        size = (self.camera.image_width, self.camera.image_height)
        return cv2.resize(self.pixels[..., :3], size, interpolation=cv2.INTER_AREA)


def _fixed(outline: np.ndarray) -> np.ndarray:
    """Pixels (K, 2) to OpenCV's fixed-point canvas coordinates, whose integers are pixel centers."""
    canvas = np.clip(outline, -_FAR_OFF, _FAR_OFF) * SUPERSAMPLING - 0.5
    return np.round(canvas * (1 << _SHIFT)).astype(np.int32)


def _paint(color, ident: int) -> tuple[int, int, int, int]:
    red, green, blue = (min(255, max(0, int(channel))) for channel in color)
    return red, green, blue, ident
