"""Things made of flat faces: positions in the thing's own frame, hidden faces culled, the rest painted far to near."""

from dataclasses import dataclass, field

import numpy as np

from synthdrive.camera import NEAR
from synthdrive.canvas import Canvas, fixed_point


@dataclass(frozen=True)
class Place:
    """The place of a thing: ground point (x, z) in meters and heading in radians, 0 away from the camera."""

    x: float
    z: float
    heading: float

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) of (forward, right, up) in the thing's frame to world (x, y, z)."""
        sine, cosine = np.sin(self.heading), np.cos(self.heading)
        world = np.empty((len(points), 3))
        world[:, 0] = self.x + points[:, 0] * sine + points[:, 1] * cosine
        world[:, 1] = points[:, 2]
        world[:, 2] = self.z + points[:, 0] * cosine - points[:, 1] * sine
        return world


@dataclass(frozen=True)
class Decal:
    """A flat detail on a face, drawn right after it.

    At night it is a lamp where `lamp` is (color, power, kind), a lit window where `emission` is a linear RGB radiance.
    """

    points: np.ndarray
    color: tuple
    lamp: tuple | None = None
    emission: tuple | None = None


@dataclass
class Face:
    """A flat polygon (K, 3) of (forward, right, up), with details; `inside` is a point behind it, which orients it."""

    points: np.ndarray
    color: tuple
    inside: tuple
    decals: list[Decal] = field(default_factory=list)

    def patch(
        self,
        left: float,
        bottom: float,
        right: float,
        top: float,
        color,
        lamp: tuple | None = None,
        emission: tuple | None = None,
    ) -> "Face":
        """Add a rectangle in the quad's own coordinates: (0, 0) at its first corner, (1, 1) at its third."""
        weights = [
            ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
            for u, v in ((left, bottom), (right, bottom), (right, top), (left, top))
        ]
        self.decals.append(Decal(np.array(weights) @ self.points, color, lamp, emission))
        return self


class Model:
    """A collection of faces."""

    def __init__(self) -> None:
        self.faces: list[Face] = []

    def face(self, points, color, inside) -> Face:
        """Add a polygon of (forward, right, up) corners; quads: bottom left, bottom right, top right, top left."""
        face = Face(np.asarray(points, dtype=np.float64), color, inside)
        self.faces.append(face)
        return face

    def box(
        self, rear: float, front: float, left: float, right: float, bottom: float, top: float, color
    ) -> dict[str, Face]:
        """Add a box; its faces by name, seen from outside: "rear", "front", "left", "right", "top"."""
        inside = ((rear + front) / 2, (left + right) / 2, (bottom + top) / 2)
        corners = {
            "rear": [(rear, left, bottom), (rear, right, bottom), (rear, right, top), (rear, left, top)],
            "front": [(front, right, bottom), (front, left, bottom), (front, left, top), (front, right, top)],
            "left": [(front, left, bottom), (rear, left, bottom), (rear, left, top), (front, left, top)],
            "right": [(rear, right, bottom), (front, right, bottom), (front, right, top), (rear, right, top)],
            "top": [(rear, left, top), (rear, right, top), (front, right, top), (front, left, top)],
        }
        return {name: self.face(points, color, inside) for name, points in corners.items()}

    def draw(self, canvas: Canvas, place: Place, ident: int) -> None:
        """Paint the faces turned to the camera, far to near, each followed by its details."""
        eye = np.array([0.0, canvas.camera.height, 0.0])
        normals, centers = self._oriented(place)
        seen = ((normals * (centers - eye)).sum(axis=1) < 0.0).tolist()
        order = np.argsort(-((centers - eye) ** 2).sum(axis=1), kind="stable").tolist()
        parts = []
        for index in order:
            if seen[index]:
                face, level = self.faces[index], canvas.daylight.level(normals[index])
                parts.append((Decal(face.points, face.color), level))
                parts.extend((decal, level) for decal in face.decals)
        if parts:
            _paint_parts(canvas, place, parts, ident)

    def _oriented(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """Outward unit normals (F, 3) and centers (F, 3) of the faces in the world."""
        count = len(self.faces)
        corners = np.concatenate([face.points[:3] for face in self.faces])
        middles = np.array([(face.points[0] + face.points[2]) / 2 for face in self.faces])
        insides = np.array([face.inside for face in self.faces])
        world = place.to_world(np.concatenate([corners, middles, insides]))
        a, b, c = (world[k : 3 * count : 3] for k in range(3))
        centers, insides = world[3 * count : 4 * count], world[4 * count :]
        normals = np.cross(b - a, c - a)
        normals /= np.maximum(np.sqrt((normals**2).sum(axis=1, keepdims=True)), 1e-9)
        flipped = (normals * (centers - insides)).sum(axis=1, keepdims=True) < 0.0
        return np.where(flipped, -normals, normals), centers


def _paint_parts(canvas: Canvas, place: Place, parts: list[tuple[Decal, float]], ident: int) -> None:
    """Paint polygons under their light levels; with one projection for all if none is clipped."""
    world = place.to_world(np.concatenate([part.points for part, _ in parts]))
    fixed = fixed_point(canvas.camera.project(world)) if world[:, 2].min() >= NEAR else None
    start, lit = 0, {}
    for part, level in parts:
        stop = start + len(part.points)
        color, own = canvas.daylight.lit(part.color, level), ident
        if part.emission is not None:
            own = lit[part.emission] = lit.get(part.emission) or canvas.lit_id(ident, part.emission)
        if fixed is None:
            canvas.polygon(world[start:stop], color, own)
        else:
            canvas.fill_fixed([fixed[start:stop]], color, own)
        if part.lamp is not None:
            canvas.lamp(world[start:stop], *part.lamp, ident)
        start = stop


def circle(forward: float, right: float, up: float, radius: float, corners: int = 16) -> np.ndarray:
    """Corners (N, 3) of a wheel-like circle in the thing's vertical plane at this `right`."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    points = np.empty((corners, 3))
    points[:, 0] = forward + radius * np.cos(angle)
    points[:, 1] = right
    points[:, 2] = up + radius * np.sin(angle)
    return points
