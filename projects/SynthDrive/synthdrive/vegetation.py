"""Trees, bushes and hedges, painted as clusters of leaf blobs that are lighter towards the sun."""

import numpy as np

from synthdrive import paint
from synthdrive.canvas import Canvas
from synthdrive.model import Place

GREENS = ((72, 104, 50), (88, 116, 56), (58, 92, 54), (104, 124, 58), (122, 118, 56), (66, 100, 66))
_FRONT = np.array([0.0, 0.45, -0.9])


def draw_tree(canvas: Canvas, place: Place, rng: np.random.Generator, height: float) -> None:
    """A broad-leaved tree, or (one in four) a conifer."""
    ident = canvas.new_id(depth=max(1.0, place.z))
    green = paint.vary(rng, paint.pick(rng, GREENS), 8.0)
    foot, fork = np.array([place.x, 0.0, place.z]), np.array([place.x, height * 0.5, place.z])
    trunk = canvas.daylight.shade(paint.vary(rng, (96, 78, 62), 8.0), _FRONT)
    canvas.limb(foot, fork, 0.024 * height, 0.014 * height, trunk, ident)
    if rng.random() < 0.25:
        _cone(canvas, place, rng, height, green, ident)
        return
    crown = np.array([place.x, height * 0.68, place.z])
    for side in (-1, 1):
        canvas.limb(
            fork * (1, 0.8, 1),
            crown + (0.16 * side * height, 0.02 * height, 0.0),
            0.012 * height,
            0.005 * height,
            trunk,
            ident,
        )
    _leaves(canvas, rng, crown, 0.30 * height, 0.33 * height, green, ident)


def draw_bush(canvas: Canvas, place: Place, rng: np.random.Generator, height: float) -> None:
    """A round bush."""
    ident = canvas.new_id(depth=max(1.0, place.z))
    green = paint.vary(rng, paint.pick(rng, GREENS), 8.0)
    center = np.array([place.x, height * 0.45, place.z])
    _leaves(canvas, rng, center, height * float(rng.uniform(0.6, 1.0)), height * 0.5, green, ident)


def _leaves(
    canvas: Canvas, rng: np.random.Generator, center: np.ndarray, wide: float, high: float, green, ident: int
) -> None:
    """Dark big blobs inside, lighter small ones on top, each lit by where on the crown it lies."""
    if center[2] < 1.0:
        return
    u, v = canvas.camera.project(center[None])[0]
    scale = canvas.camera.focal / center[2]
    if not -wide * scale < u < canvas.camera.image_width + wide * scale:
        return
    detail = int(np.clip(wide * scale, 4, 60))
    side = np.sign(canvas.daylight.sun[0]) * min(1.0, canvas.daylight.strength * 2)
    base = canvas.daylight.level(_FRONT)
    for count, size, light in ((7 + detail // 6, 0.44, 0.68), (9 + detail, 0.20, 0.95), (4 + 2 * detail, 0.10, 1.12)):
        angle, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count)) * (1.02 - size * 0.7)
        across, up = radius * np.cos(angle), radius * np.sin(angle)
        level = base * np.maximum(0.2, light * (0.90 + 0.22 * up + 0.20 * across * side) + rng.normal(0, 0.06, count))
        grown = size * rng.uniform(0.7, 1.25, count) * (wide + high) / 2 * scale
        colors = level[:, None] * (np.array(green) * canvas.daylight.tint)
        canvas.blobs(u + across * wide * scale, v - up * high * scale, grown, colors, ident)


def _cone(canvas: Canvas, place: Place, rng: np.random.Generator, height: float, green, ident: int) -> None:
    """Tiers of drooping branches, narrower towards the top."""
    shade = canvas.daylight.shade
    tiers = 8
    for tier in range(tiers):
        low, high = height * (0.12 + 0.80 * tier / tiers), height * (0.12 + 0.80 * (tier + 2.1) / tiers)
        half = 0.24 * height * (1.05 - tier / tiers) + 0.1
        lateral = np.linspace(-half, half, 9)
        teeth = low + np.abs(rng.normal(0.0, 0.02 * height, 9)) + np.where(np.arange(9) % 2, 0.03 * height, 0.0)
        outline = np.stack([place.x + lateral, teeth, np.full(9, place.z)], axis=1)
        tip = np.array([[place.x, min(high, height), place.z]])
        level = 0.72 + 0.05 * tier + float(rng.normal(0, 0.04))
        canvas.polygon(np.concatenate([outline, tip]), shade(paint.darker(green, level), _FRONT), ident)


def draw_hedge(canvas: Canvas, points: np.ndarray, height: float, rng: np.random.Generator) -> None:
    """A clipped hedge along ground points (2, 3): a wall of leaves with a lighter top."""
    top = points[::-1] + (0.0, height, 0.0)
    quad = np.concatenate([points, top])
    ident = canvas.new_id(plane=canvas.camera.inverse_depth_plane(quad))
    green = paint.vary(rng, paint.pick(rng, GREENS), 6.0)
    canvas.polygon(quad, canvas.daylight.shade(paint.darker(green, 0.82), _FRONT), ident)
    cap = quad.copy()
    cap[:2] += (0.0, height * 0.84, 0.0)
    canvas.polygon(cap, canvas.daylight.shade(green, _FRONT), ident)
