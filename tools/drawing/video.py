"""Draws on the frames of a video. All frames are BGR, (H, W, 3), uint8, as OpenCV has them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from soma_det.utils.files import atomic_path

Draw = Callable[[np.ndarray], np.ndarray]  # BGR frame -> BGR drawing


def draw_video(source: Path, target: Path, draw: Draw) -> None:
    """Draw on every frame of a video; the result is an mp4 without sound, written atomically.

    Raises:
        OSError: the video cannot be read, or OpenCV cannot write mp4 here.
    """
    capture = cv2.VideoCapture(str(source))
    try:
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        frames = tqdm(_frames(capture), desc=source.name, total=total or None, unit="frame")
        with atomic_path(target) as temporary:
            if not _write(temporary, map(draw, frames), capture.get(cv2.CAP_PROP_FPS) or 25.0):
                raise OSError(f"Cannot read the video {source}: OpenCV finds no frame in it.")
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield frame


def _write(path: Path, frames: Iterator[np.ndarray], fps: float) -> bool:
    """Write frames of one size as mp4; returns whether there was any."""
    writer = None
    try:
        for frame in map(_even, frames):
            if writer is None:
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, frame.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {path}: this build has no encoder for mp4.")
            writer.write(frame)
    finally:
        if writer is not None:
            writer.release()
    return writer is not None


def _even(image: np.ndarray) -> np.ndarray:
    """Cut off the last row or column where their number is odd, which mp4 encoders refuse."""
    return np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2])
