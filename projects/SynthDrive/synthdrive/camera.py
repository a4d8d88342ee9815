"""A pinhole camera over a flat road.

World frame, in meters: x to the right, y up from the road, z forward from the camera. Verticals stay vertical: pitch
and yaw are shifts of the principal point, as for a view camera whose lens is shifted.
"""

from dataclasses import dataclass

import numpy as np

NEAR = 0.7  # meters; nothing closer than this is drawn


@dataclass(frozen=True)
class Camera:
    """Focal length, vanishing point (center_x, horizon) and image size in pixels; height over the road in meters."""

    focal: float
    center_x: float
    horizon: float
    height: float
    image_height: int
    image_width: int

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3), all with z > 0, to pixels (N, 2)."""
        scale = self.focal / points[:, 2]
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = self.center_x + scale * points[:, 0]
        pixels[:, 1] = self.horizon + scale * (self.height - points[:, 1])
        return pixels

    def inverse_depth_plane(self, points: np.ndarray) -> np.ndarray:
        """(a, b, c) with 1/z = a u + b v + c for every pixel (u, v) of the plane through the first three points (3, 3).

        Perspective maps planes to planes of inverse depth, so three numbers hold the depth of a whole wall.
        """
        seen = points[:3] * (1.0, -1.0, 1.0) + (0.0, self.height, 0.0)
        normal = np.cross(seen[1] - seen[0], seen[2] - seen[0])
        normal = normal / (normal @ seen[0])
        a, b = normal[:2] / self.focal
        return np.array([a, b, normal[2] - a * self.center_x - b * self.horizon])

    def ground_plane(self) -> np.ndarray:
        """Inverse depth of the road: zero at the horizon, growing downwards."""
        return np.array([0.0, 1.0, -self.horizon]) / (self.focal * self.height)


def clip_near(points: np.ndarray) -> np.ndarray:
    """Cut the polygon (K, 3) at the near plane (Sutherland and Hodgman 1974); (0, 3) where nothing is left."""
    if points[:, 2].min() >= NEAR:
        return points
    kept = []
    for here, there in zip(points, np.roll(points, -1, axis=0)):
        if here[2] >= NEAR:
            kept.append(here)
        if (here[2] >= NEAR) != (there[2] >= NEAR):
            kept.append(here + (there - here) * ((NEAR - here[2]) / (there[2] - here[2])))
    return np.array(kept).reshape(-1, 3)
