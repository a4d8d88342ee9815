"""The order in which a painter draws solid things so that nearer ones cover farther ones."""

import numpy as np


def painting_order(bounds: np.ndarray) -> list[int]:
    """Indices, farthest first, of things with ground rectangles (N, 4): x0, z0, x1, z1; the camera is at (0, 0).

    Of two rectangles that a line along an axis separates, the one on the camera's side of the line is in front.
    Where rectangles overlap, the nearer center is in front.
    """
    behind = _behind(bounds)
    left = np.ones(len(bounds), dtype=bool)
    distance = bounds[:, 1] + bounds[:, 3]
    order = []
    while left.any():
        waiting = (behind & left[:, None]).sum(axis=0)
        blocked = np.where(left, waiting, len(bounds) + 1)
        candidates = np.flatnonzero(blocked == blocked.min())
        chosen = int(candidates[np.argmax(distance[candidates])])
        order.append(chosen)
        left[chosen] = False
    return order


def _behind(bounds: np.ndarray) -> np.ndarray:
    """(N, N) bool: whether the row's thing must be painted before the column's."""
    x0, z0, x1, z1 = (bounds[:, i] for i in range(4))
    farther = z0[:, None] >= z1[None, :]
    nearer = farther.T
    right_of = x0[:, None] >= x1[None, :]  # row lies to the right of column; the line between them at x1 of the column
    outside_right = right_of & (x0[:, None] > 0.0)  # then the camera is on the column's side
    outside_left = right_of.T & (x1[:, None] < 0.0)
    inside = outside_right.T | outside_left.T
    centers = z0 + z1
    by_center = centers[:, None] > centers[None, :]
    beside = np.where(outside_right | outside_left, True, np.where(inside, False, by_center))
    result = np.where(farther, True, np.where(nearer, False, beside))
    np.fill_diagonal(result, False)
    return result
