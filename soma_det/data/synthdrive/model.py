"""Things made of flat faces: positions in the thing's own frame, hidden faces culled, the rest painted far to near."""

from dataclasses import dataclass, field

import numpy as np

from soma_det.data.synthdrive.canvas import Canvas


@dataclass(frozen=True)
class Place:
    """Where a thing stands: ground point (x, z) in meters and heading in radians; heading 0 drives away from the camera."""

    x: float
    z: float
    heading: float

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) of (forward, right, up) in the thing's frame to world (x, y, z)."""
        sine, cosine = np.sin(self.heading), np.cos(self.heading)
        forward, right, up = points[:, 0], points[:, 1], points[:, 2]
        return np.stack([self.x + forward * sine + right * cosine, up, self.z + forward * cosine - right * sine], axis=1)


@dataclass
class Decal:
    """A flat detail on a face, drawn right after it; `lamp` is (color, power, kind) where it shines at night."""

    points: np.ndarray
    color: tuple
    lamp: tuple | None = None


@dataclass
class Face:
    """A flat polygon (K, 3) of (forward, right, up), with details; `inside` is a point behind it, which orients it."""

    points: np.ndarray
    color: tuple
    inside: np.ndarray
    decals: list[Decal] = field(default_factory=list)

    def patch(self, left: float, bottom: float, right: float, top: float, color, lamp: tuple | None = None) -> "Face":
        """Add a rectangle in the quad's own coordinates: (0, 0) at its first corner, (1, 1) at its third."""
        a, b, c, d = self.points
        u = np.array([left, right, right, left])[:, None]
        v = np.array([bottom, bottom, top, top])[:, None]
        points = a * (1 - u) * (1 - v) + b * u * (1 - v) + c * u * v + d * (1 - u) * v
        self.decals.append(Decal(points, color, lamp))
        return self


class Model:
    """A collection of faces and the corners of what it covers on the ground."""

    def __init__(self) -> None:
        self.faces: list[Face] = []

    def face(self, points, color, inside) -> Face:
        """Add a polygon of (forward, right, up) corners; quads: bottom left, bottom right, top right, top left."""
        face = Face(np.asarray(points, dtype=np.float64), color, np.asarray(inside, dtype=np.float64))
        self.faces.append(face)
        return face

    def box(self, rear: float, front: float, left: float, right: float, bottom: float, top: float, color) -> dict[str, Face]:
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
        seen = np.einsum("fc,fc->f", normals, centers - eye) < 0.0
        for index in np.argsort(-np.linalg.norm(centers - eye, axis=1), kind="stable"):
            if seen[index]:
                self._draw_face(canvas, place, self.faces[index], normals[index], ident)

    def _oriented(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """Outward unit normals (F, 3) and centers (F, 3) of the faces in the world."""
        corners = np.stack([face.points[:3] for face in self.faces]).reshape(-1, 3)
        corners = place.to_world(corners).reshape(-1, 3, 3)
        centers = place.to_world(np.stack([face.points.mean(axis=0) for face in self.faces]))
        insides = place.to_world(np.stack([face.inside for face in self.faces]))
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        flipped = np.einsum("fc,fc->f", normals, centers - insides) < 0.0
        return np.where(flipped[:, None], -normals, normals), centers

    def _draw_face(self, canvas: Canvas, place: Place, face: Face, normal: np.ndarray, ident: int) -> None:
        canvas.polygon(place.to_world(face.points), canvas.daylight.shade(face.color, normal), ident)
        for decal in face.decals:
            points = place.to_world(decal.points)
            canvas.polygon(points, canvas.daylight.shade(decal.color, normal), ident)
            if decal.lamp is not None:
                canvas.lamp(points, *decal.lamp, ident)


def circle(forward: float, right: float, up: float, radius: float, corners: int = 16) -> np.ndarray:
    """Corners (N, 3) of a wheel-like circle in the thing's vertical plane at this `right`."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    points = np.empty((corners, 3))
    points[:, 0] = forward + radius * np.cos(angle)
    points[:, 1] = right
    points[:, 2] = up + radius * np.sin(angle)
    return points
