"""Depth of a photograph that comes without one."""

import numpy as np

FOCAL_SHARE = 0.95  # focal length over image width that is assumed of every camera


def assume_road_depth(height: int, width: int, camera_height: float = 1.5, far: float = 150.0) -> np.ndarray:
    """A guess (H, W), meters, for a photograph from a car: a flat road below a horizon at 45 percent, `far` above."""
    below = np.arange(height, dtype=np.float32) + 0.5 - 0.45 * height
    road = FOCAL_SHARE * width * camera_height / np.maximum(below, 1e-3)
    rows = np.where(below > 0.0, np.minimum(road, far), far).astype(np.float32)
    return np.repeat(rows[:, None], width, axis=1)
