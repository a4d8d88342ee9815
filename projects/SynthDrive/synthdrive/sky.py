"""Sky with clouds, and the skyline in front of it."""

from functools import lru_cache

import cv2
import numpy as np

from synthdrive import paint
from synthdrive.canvas import SKY, SUPERSAMPLING, Canvas


def paint_sky(canvas: Canvas, rng: np.random.Generator, clouds: float, zenith, horizon) -> None:
    """Fill the canvas above the horizon: a gradient between two colors under clouds of this cover in [0, 1]."""
    rows = max(2, min(canvas.camera.image_height, int(np.ceil(canvas.camera.horizon)) + 2)) // 2 + 1
    columns = (canvas.camera.image_width + 1) // 2
    elevation = np.linspace(1.0, 0.0, rows, dtype=np.float32)[:, None, None]
    blue = (
        np.asarray(horizon, np.float32)
        + (np.asarray(zenith, np.float32) - np.asarray(horizon, np.float32)) * elevation**0.7
    )
    cover = _cloud_cover(rng, rows, columns, clouds)[..., None]
    texture = _cloud_cover(rng, rows, columns, 0.65)[..., None]
    white = np.asarray(paint.mix((246, 247, 249), horizon, 0.25), np.float32)
    grey = np.asarray(paint.mix((176, 182, 192), horizon, 0.2), np.float32)
    cloud = white + (grey - white) * (0.15 + 0.85 * texture * min(1.0, 0.35 + clouds * 0.7))
    sky = np.clip(blue + (cloud - blue) * cover, 0.0, 255.0).astype(np.uint8)
    big = cv2.resize(sky, (columns * 2 * SUPERSAMPLING, rows * 2 * SUPERSAMPLING), interpolation=cv2.INTER_LINEAR)
    big = big[: canvas.pixels.shape[0], : canvas.pixels.shape[1]]
    canvas.pixels[: big.shape[0], :, :3] = big
    canvas.pixels[: big.shape[0], :, 3] = SKY


def _cloud_cover(rng: np.random.Generator, rows: int, columns: int, cover: float) -> np.ndarray:
    """Fractal noise (rows, columns) in [0, 1], flattened towards the horizon as clouds on a plane are."""
    noise = fractal_noise()
    elevation = np.linspace(1.0, 0.04, rows)
    distance = (1.0 / (elevation + 0.12) * 46.0 + rng.uniform(0, 512)).astype(np.int32) % 512
    spread = np.linspace(-1.0, 1.0, columns)[None, :] * (60.0 + 90.0 / (elevation[:, None] + 0.25))
    across = (spread + rng.uniform(0, 512)).astype(np.int32) % 512
    value = cv2.GaussianBlur(noise[distance[:, None], across], (0, 0), 0.7)
    threshold = 0.80 - 0.62 * cover
    return np.clip((value - threshold) / 0.22, 0.0, 1.0)


@lru_cache(maxsize=1)
def fractal_noise() -> np.ndarray:
    """A fixed tileable noise (512, 512) float32 in [0, 1] with detail at every scale."""
    rng = np.random.default_rng(20240412)
    total = np.zeros((512, 512), np.float32)
    for octave in range(2, 8):
        cells = 2**octave
        grid = np.pad(rng.random((cells, cells), dtype=np.float32), 2, mode="wrap")
        zoom = 512 // cells
        large = cv2.resize(grid, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        total += large[2 * zoom : 2 * zoom + 512, 2 * zoom : 2 * zoom + 512] * 0.62 ** (octave - 2)
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low), 0.0, 1.0)


def paint_skyline(canvas: Canvas, rng: np.random.Generator, kind: str) -> None:
    """Hills, a town or a tree line on the horizon."""
    if kind in ("country", "highway") or rng.random() < 0.35:
        _hills(canvas, rng, 1400.0, 0.085, (118, 138, 150))
    if kind == "city" or rng.random() < 0.3:
        _towers(canvas, rng)
    _hills(canvas, rng, 330.0, 0.028, (78, 98, 70))


def _hills(canvas: Canvas, rng: np.random.Generator, depth: float, relief: float, color) -> None:
    camera = canvas.camera
    ident = canvas.new_id(depth)
    u = np.linspace(-4, camera.image_width + 4, 60)
    noise = fractal_noise()[
        int(rng.integers(512)), (np.arange(60) * (9 if depth < 500 else 3) + int(rng.integers(512))) % 512
    ]
    top = camera.horizon - camera.image_height * relief * (0.3 + noise * float(rng.uniform(0.5, 1.0)))
    base = np.array([[camera.image_width + 4, camera.horizon + 2], [-4, camera.horizon + 2]])
    canvas.fill(
        [np.concatenate([np.stack([u, top], axis=1), base])],
        canvas.daylight.shade(color, np.array([0.0, 0.7, -0.7])),
        ident,
    )


def _towers(canvas: Canvas, rng: np.random.Generator) -> None:
    camera = canvas.camera
    ident = canvas.new_id(450.0)
    for _ in range(int(rng.integers(5, 14))):
        left, width = rng.uniform(-20, camera.image_width), rng.uniform(0.02, 0.06) * camera.image_width
        height = camera.image_height * rng.uniform(0.03, 0.15)
        box = np.array(
            [
                [left, camera.horizon - height],
                [left + width, camera.horizon - height],
                [left + width, camera.horizon + 2],
                [left, camera.horizon + 2],
            ]
        )
        color = canvas.daylight.shade(paint.vary(rng, (138, 142, 150), 12.0), np.array([0.0, 0.3, -0.95]))
        canvas.fill([box], color, ident)
