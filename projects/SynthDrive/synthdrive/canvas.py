"""The painter's canvas: colors, and in a fourth channel the id of the visible thing, whose plane gives the depth."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from synthdrive.camera import NEAR, Camera, clip_near

SUPERSAMPLING = 2
SKY, GROUND, ROAD = 0, 1, 2  # ids of the fourth channel that every scene has
_SHIFT = 4  # OpenCV's fixed-point coordinates: 1/16 pixel
_FAR_OFF = 20000.0  # pixels; keeps fixed-point coordinates of near polygons inside 32 bits


class Light(NamedTuple):
    """A lamp: center and extent in pixels, depth in meters, color RGB in [0, 1], power relative to a headlamp."""

    x: float
    y: float
    width: float
    height: float
    depth: float
    color: tuple[float, float, float]
    power: float
    kind: str  # "head", "tail", "street" or "signal"


@dataclass(frozen=True)
class Daylight:
    """Sun (a unit vector towards it, with a strength) and ambient skylight; tint is the color of all light."""

    sun: tuple[float, float, float]
    strength: float
    ambient: float
    tint: tuple[float, float, float]

    def level(self, normal) -> float:
        """Brightness of a white Lambertian surface with this unit normal (3,), in ambient light and sun."""
        x, y, z = (float(component) for component in normal)
        direct = max(0.0, x * self.sun[0] + y * self.sun[1] + z * self.sun[2]) * self.strength
        return self.ambient * (0.85 + 0.15 * y) + direct

    def shade(self, color, normal) -> tuple[float, float, float]:
        """The color that a surface of this color and unit normal (3,) shows, 0 to 255."""
        return self.lit(color, self.level(normal))

    def lit(self, color, level: float) -> tuple[float, float, float]:
        """The color under light of this level."""
        red, green, blue = self.tint
        return (
            min(255.0, color[0] * level * red),
            min(255.0, color[1] * level * green),
            min(255.0, color[2] * level * blue),
        )

    @property
    def shadow(self) -> float:
        """Brightness of the ground in a cast shadow over that in the sun."""
        return self.ambient / (self.ambient + self.strength * max(0.05, self.sun[1]))


class Canvas:
    """Supersampled RGB + id image of what a camera sees; later strokes cover earlier ones (painter's algorithm)."""

    def __init__(self, camera: Camera, daylight: Daylight) -> None:
        self.camera = camera
        self.daylight = daylight
        shape = (camera.image_height * SUPERSAMPLING, camera.image_width * SUPERSAMPLING, 4)
        self.pixels = np.zeros(shape, dtype=np.uint8)
        ground = camera.ground_plane()
        self.planes: list[np.ndarray] = [np.zeros(3), ground, ground]
        self.owners = [SKY, GROUND, ROAD]
        self.emissions: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * 3
        self.lights: list[tuple[Light, int]] = []

    def new_id(self, depth: float | None = None, plane: np.ndarray | None = None) -> int:
        """An id for a thing at one depth in meters, or on a plane of inverse depth."""
        return self._register(
            np.array([0.0, 0.0, 1.0 / depth]) if plane is None else plane, len(self.planes), (0.0, 0.0, 0.0)
        )

    def lit_id(self, owner: int, emission: tuple[float, float, float]) -> int:
        """An id for parts of the thing `owner` that shine at night with this linear RGB radiance, such as windows."""
        return self._register(self.planes[owner], owner, emission)

    def _register(self, plane: np.ndarray, owner: int, emission: tuple[float, float, float]) -> int:
        if len(self.planes) > 255:
            raise RuntimeError("A scene holds at most 253 things: the id channel has 8 bits.")
        self.planes.append(plane)
        self.owners.append(owner)
        self.emissions.append(emission)
        return len(self.planes) - 1

    def fill(self, outlines: list[np.ndarray], color, ident: int) -> None:
        """Fill polygons given in pixels, each (K, 2)."""
        self.fill_fixed([fixed_point(outline) for outline in outlines if len(outline) >= 3], color, ident)

    def fill_fixed(self, fixed: list[np.ndarray], color, ident: int) -> None:
        """Fill polygons given in `fixed_point` coordinates."""
        if fixed:
            cv2.fillPoly(self.pixels, fixed, _paint(color, ident), cv2.LINE_8, _SHIFT)

    def polygon(self, points: np.ndarray, color, ident: int) -> None:
        """Fill a polygon given in the world, (K, 3)."""
        clipped = clip_near(points)
        if len(clipped) >= 3:
            self.fill([self.camera.project(clipped)], color, ident)

    def quads(self, quads: np.ndarray, color, ident: int) -> None:
        """Fill many world quads (N, 4, 3) of one color, without those that reach behind the camera."""
        quads = quads[quads[:, :, 2].min(axis=1) >= NEAR] if len(quads) else quads
        if len(quads):
            fixed = fixed_point(self.camera.project(quads.reshape(-1, 3))).reshape(-1, 4, 2)
            self.fill_fixed(list(fixed), color, ident)

    def stroke(self, points: np.ndarray, width: float, color, ident: int, closed: bool = False) -> None:
        """A line of this width in meters through world points (K, 3)."""
        if points[:, 2].min() < NEAR:
            return
        thickness = self.pixel_width(width, float(points[:, 2].mean()))
        outline = fixed_point(self.camera.project(points))
        cv2.polylines(self.pixels, [outline], closed, _paint(color, ident), thickness, cv2.LINE_8, _SHIFT)

    def disc(self, center: np.ndarray, radius: float, color, ident: int, squash: float = 1.0) -> None:
        """A disc facing the camera around a world point (3,); squash is its height over its width."""
        if center[2] < NEAR:
            return
        u, v, scale = self._pixel(center)
        self.blob(u, v, radius * scale, radius * scale * squash, color, ident)

    def blob(self, u: float, v: float, half_width: float, half_height: float, color, ident: int) -> None:
        """An ellipse in pixels."""
        if abs(u) > _FAR_OFF or abs(v) > _FAR_OFF:
            return
        fixed = SUPERSAMPLING * (1 << _SHIFT)
        axes = (max(8, int(half_width * fixed)), max(8, int(half_height * fixed)))
        center = (int(u * fixed) - 8, int(v * fixed) - 8)
        if axes[0] == axes[1]:
            cv2.circle(self.pixels, center, axes[0], _paint(color, ident), -1, cv2.LINE_8, _SHIFT)
            return
        cv2.ellipse(self.pixels, center, axes, 0, 0, 360, _paint(color, ident), -1, cv2.LINE_8, _SHIFT)

    def blobs(self, u: np.ndarray, v: np.ndarray, radius: np.ndarray, colors: np.ndarray, ident: int) -> None:
        """Many circles in pixels, (N,) each, with colors (N, 3)."""
        fixed = SUPERSAMPLING * (1 << _SHIFT)
        circles = np.stack([u * fixed - 8, v * fixed - 8, np.maximum(8, radius * fixed)], axis=1).astype(int).tolist()
        for (x, y, size), paint in zip(circles, np.minimum(colors, 255.0).astype(int).tolist()):
            cv2.circle(self.pixels, (x, y), size, (*paint, ident), -1, cv2.LINE_8, _SHIFT)

    def limb(
        self, start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float, color, ident: int
    ) -> None:
        """A tapered round rod between two world points; the radii are in meters."""
        if min(start[2], end[2]) < NEAR:
            return
        (u0, v0, scale0), (u1, v1, scale1) = self._pixel(start), self._pixel(end)
        r0, r1 = start_radius * scale0, end_radius * scale1
        length = max(1e-6, math.hypot(u1 - u0, v1 - v0))
        x, y = (v0 - v1) / length, (u1 - u0) / length
        sides = (
            (u0 + x * r0, v0 + y * r0),
            (u0 - x * r0, v0 - y * r0),
            (u1 - x * r1, v1 - y * r1),
            (u1 + x * r1, v1 + y * r1),
        )
        self.fill([np.array(sides)], color, ident)
        self.blob(u0, v0, r0, r0, color, ident)
        self.blob(u1, v1, r1, r1, color, ident)

    def _pixel(self, point: np.ndarray) -> tuple[float, float, float]:
        """Pixel of one world point (3,), and pixels per meter there."""
        x, y, z = point.tolist()
        scale = self.camera.focal / z
        return self.camera.center_x + scale * x, self.camera.horizon + scale * (self.camera.height - y), scale

    def pixel_width(self, width: float, depth: float) -> int:
        """Thickness on the supersampled canvas of a thing this wide (meters) at this depth, at least 1."""
        return max(1, round(width * self.camera.focal / depth * SUPERSAMPLING))

    def lamp(self, points: np.ndarray, color, power: float, kind: str, ident: int) -> None:
        """Add a light with the outline (K, 3) of a lamp."""
        if points[:, 2].min() < NEAR:
            return
        outline = self.camera.project(points)
        (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
        depth = float(points[:, 2].mean())
        light = Light((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, depth, tuple(color), power, kind)
        self.lights.append((light, ident))

    def visible_lights(self) -> list[Light]:
        """Lights whose thing is visible at their center."""
        seen = self.things()
        height, width = seen.shape
        kept = []
        for light, ident in self.lights:
            column, row = int(light.x * SUPERSAMPLING), int(light.y * SUPERSAMPLING)
            if 0 <= column < width and 0 <= row < height and seen[row, column] == ident:
                kept.append(light)
        return kept

    def things(self) -> np.ndarray:
        """Id of the thing seen at each pixel of the supersampled canvas, lit parts counted as their owner."""
        table = np.zeros(256, np.uint8)
        table[: len(self.owners)] = self.owners
        return cv2.LUT(np.ascontiguousarray(self.pixels[..., 3]), table).reshape(self.pixels.shape[:2])

    def ids(self) -> np.ndarray:
        """Id at each pixel of the final image, (H, W)."""
        return self.pixels[::SUPERSAMPLING, ::SUPERSAMPLING, 3]

    def emission(self) -> np.ndarray:
        """Radiance (H, W, 3) float32, linear RGB, of lit windows at night."""
        ids = self.ids().reshape(-1)
        table = np.asarray(self.emissions, np.float32)
        lit = np.zeros(256, bool)
        lit[: len(table)] = table.any(axis=1)
        shining = np.flatnonzero(lit[ids])
        radiance = np.zeros((len(ids), 3), np.float32)
        radiance[shining] = table[ids[shining]]
        return radiance.reshape(self.camera.image_height, self.camera.image_width, 3)

    def depth(self) -> np.ndarray:
        """Depth along the optical axis in meters, (H, W) float32; inf is the sky."""
        ids = self.ids()
        a, b, c = np.asarray(self.planes, dtype=np.float32).T
        u = np.arange(ids.shape[1], dtype=np.float32) + 0.5
        v = np.arange(ids.shape[0], dtype=np.float32)[:, None] + 0.5
        inverse = np.take(a, ids) * u + np.take(b, ids) * v + np.take(c, ids)
        depth = np.clip(1.0 / np.maximum(inverse, 5e-4), NEAR, None)
        depth[inverse <= 0.0] = np.inf
        return depth

    def image(self) -> np.ndarray:
        """The anti-aliased image, (H, W, 3) uint8 RGB."""
        size = (self.camera.image_width, self.camera.image_height)
        return cv2.resize(self.pixels[..., :3], size, interpolation=cv2.INTER_AREA)


def fixed_point(outline: np.ndarray) -> np.ndarray:
    """Pixels (K, 2) to OpenCV's fixed-point canvas coordinates, whose integers are pixel centers."""
    inside = np.minimum(np.maximum(outline, -_FAR_OFF), _FAR_OFF)
    return np.rint(inside * (SUPERSAMPLING << _SHIFT) - (1 << _SHIFT >> 1)).astype(np.int32)


def _paint(color, ident: int) -> tuple[int, int, int, int]:
    return int(color[0]), int(color[1]), int(color[2]), ident
