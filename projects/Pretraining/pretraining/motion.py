"""Objects that come and go in front of a fixed camera, found without labels: targets for a single image.

Source of the idea: Pathak et al., Learning Features by Watching Objects Move, 2017 (arXiv 1612.06370).
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

DIFFERENCE = 12.0  # of 255, the least difference in some channel
MIN_AREA = 30  # pixels; smaller regions are noise
MIN_SHARE = 0.25  # of a patch's pixels, the least that an object covers
FINE = 4  # pixels, side of the cells whose covered share is a target
PORTRAIT = 32  # pixels, side of an object's resized image

Object = tuple[tuple[int, int, int, int], np.ndarray]  # XYXY box in pixels, bool mask of the box's size


def departed(before: np.ndarray, after: np.ndarray) -> Iterator[Object]:
    """Connected regions in which two (H, W, 3) uint8 images of one place differ."""
    difference = cv2.absdiff(before, after)
    difference = cv2.max(cv2.max(difference[..., 0], difference[..., 1]), difference[..., 2])
    changed = (cv2.GaussianBlur(difference, (0, 0), 0.7) > DIFFERENCE).astype(np.uint8)
    _, regions, stats, _ = cv2.connectedComponentsWithStats(changed)
    for index, (x, y, width, height, area) in enumerate(stats.tolist()):
        if index and area >= MIN_AREA:  # 0 is the unchanged region
            yield (x, y, x + width, y + height), regions[y : y + height, x : x + width] == index


def object_targets(moments: Sequence[np.ndarray], patch: int) -> dict[str, np.ndarray]:
    """Targets of the first of several images of one place. From each image to the next, some objects leave.

    Args:
        moments: at least two images (H, W, 3) uint8 RGB, H and W multiples of ``patch``.
        patch: pixels; there are P = H / patch * W / patch patches, row by row.

    Returns:
        cover: (P, (patch / 4)^2) float32, the share of each 4 x 4 pixels that objects cover;
        extent: (P, 4) float32, signed_log of the distances in pixels from the patch's center to the left, top, right
            and bottom of the object that covers most of the patch;
        covered: (P,) bool, whether such an object exists;
        portrait: (covered patches, 32, 32) uint8, the gray image of that object.
    """
    height, width = moments[0].shape[:2]
    rows, columns = height // patch, width // patch
    gray = cv2.cvtColor(moments[0], cv2.COLOR_RGB2GRAY)
    covered = np.zeros((height, width), np.float32)
    most = np.full((rows, columns), MIN_SHARE, np.float32)
    extent = np.zeros((rows, columns, 4), np.float32)
    portrait = np.zeros((rows, columns, PORTRAIT, PORTRAIT), np.uint8)
    for (x0, y0, x1, y1), mask in (found for pair in zip(moments, moments[1:]) for found in departed(*pair)):
        covered[y0:y1, x0:x1][mask] = 1.0
        near = slice(y0 // patch, -(-y1 // patch)), slice(x0 // patch, -(-x1 // patch))  # the patches that it touches
        around = (y0 % patch, -y1 % patch), (x0 % patch, -x1 % patch)
        share = _shares(np.pad(mask, around).astype(np.float32), patch)
        own = share > most[near]
        most[near][own] = share[own]
        extent[near][own] = _extents((x0, y0, x1, y1), near, patch)[own]
        portrait[near][own] = cv2.resize(gray[y0:y1, x0:x1], (PORTRAIT, PORTRAIT), interpolation=cv2.INTER_AREA)
    some = most > MIN_SHARE
    cells = _shares(covered, FINE).reshape(rows, patch // FINE, columns, patch // FINE)
    return {
        "cover": cells.transpose(0, 2, 1, 3).reshape(rows * columns, -1),
        "extent": extent.reshape(-1, 4),
        "covered": some.reshape(-1),
        "portrait": portrait[some],
    }


def signed_log(pixels: np.ndarray) -> np.ndarray:
    """Distances in pixels on a scale that is almost linear below 8 pixels and logarithmic above."""
    return np.sign(pixels) * np.log1p(np.abs(pixels) / 8.0)


def _shares(mask: np.ndarray, cell: int) -> np.ndarray:
    """Mean of a float32 mask (H, W) in each cell: (H / cell, W / cell)."""
    return cv2.resize(mask, (mask.shape[1] // cell, mask.shape[0] // cell), interpolation=cv2.INTER_AREA)


def _extents(box: tuple[int, int, int, int], patches: tuple[slice, slice], patch: int) -> np.ndarray:
    """(rows, columns, 4): from the center of each of some patches to the left, top, right, bottom of the box."""
    y, x = (np.mgrid[patches] + 0.5) * patch
    left, top, right, bottom = box
    return signed_log(np.stack([x - left, y - top, right - x, bottom - y], axis=-1))
