"""Buildings beside the street: walls with floors and windows, shops, and houses under pitched roofs."""

import numpy as np

from soma_det.data.synthdrive import paint
from soma_det.data.synthdrive.camera import clip_near
from soma_det.data.synthdrive.canvas import Canvas
from soma_det.data.synthdrive.street import Street

WALLS = (
    (178, 122, 98),
    (206, 186, 156),
    (190, 190, 188),
    (150, 98, 80),
    (222, 212, 194),
    (158, 164, 168),
    (196, 160, 128),
    (128, 112, 104),
    (214, 200, 176),
    (168, 150, 134),
)
ROOFS = ((134, 74, 58), (92, 84, 82), (112, 92, 80), (78, 82, 90))
SIGNS = ((196, 44, 40), (38, 86, 160), (44, 126, 84), (230, 170, 44), (64, 60, 66), (150, 60, 120), (236, 236, 232))
_WARM, _COLD = (1.0, 0.80, 0.48), (0.80, 0.90, 1.0)  # colors of light in rooms


class Building:
    """One building: a street-side wall from `start` to `stop` at a lateral, reaching `depth` meters back, `height` high."""

    def __init__(
        self,
        street: Street,
        rng: np.random.Generator,
        side: int,
        lateral: float,
        start: float,
        stop: float,
        house: bool,
    ) -> None:
        self.street, self.rng, self.side, self.lateral = street, rng, side, lateral
        self.start, self.stop, self.house = start, stop, house
        self.depth = float(rng.uniform(8.0, 14.0))
        self.height = (
            float(rng.uniform(4.8, 6.4))
            if house
            else float(rng.choice([8.0, 11.0, 14.0, 18.0, 24.0, 32.0]) + rng.uniform(0, 2))
        )
        self.color = paint.vary(rng, paint.pick(rng, WALLS), 9.0)
        self.style = "house" if house else str(rng.choice(["windows", "windows", "windows", "ribbons", "glass"]))

    def draw(self, canvas: Canvas) -> None:
        """Paint the end wall towards the camera, then the street side."""
        far = self.lateral + self.side * self.depth
        end = self._quad(self.lateral, self.start, far, self.start)
        front = self._quad(self.lateral, self.start, self.lateral, self.stop)
        if self.house:
            self._roof(canvas, far)
        if self.start > 2.0:
            self._wall(canvas, end, np.array([0.0, 0.0, -1.0]), shop=False)
        self._wall(canvas, front, np.array([-float(self.side), 0.0, 0.0]), shop=not self.house)

    def _quad(self, lateral_a: float, s_a: float, lateral_b: float, s_b: float) -> np.ndarray:
        height = self.height
        return self.street.points(
            [lateral_a, lateral_b, lateral_b, lateral_a], [s_a, s_b, s_b, s_a], [0.0, 0.0, height, height]
        )

    def _wall(self, canvas: Canvas, quad: np.ndarray, normal: np.ndarray, shop: bool) -> None:
        size = _pixel_width(canvas, quad)
        if size < 0.5:
            return
        ident = canvas.new_id(plane=canvas.camera.inverse_depth_plane(quad))
        shade = canvas.daylight.shade
        base = (92, 112, 128) if self.style == "glass" else self.color
        canvas.polygon(quad, shade(base, normal), ident)
        if size < 4.0:
            return
        length = float(np.linalg.norm(quad[1] - quad[0]))
        floors = max(1, round((self.height - (4.0 if shop else 0.6)) / 3.1))
        bottom = (4.0 if shop else 0.6) / self.height
        if self.style == "glass":
            self._grid(
                canvas,
                quad,
                normal,
                ident,
                max(2, round(length / 1.6)),
                floors * 2,
                bottom,
                0.93,
                0.93,
                (104, 126, 146),
            )
        elif self.style == "ribbons":
            self._grid(
                canvas, quad, normal, ident, max(1, round(length / 4.5)), floors, bottom, 0.97, 0.5, (70, 84, 96)
            )
        else:
            self._framed_windows(canvas, quad, normal, ident, length, floors, bottom)
        if shop:
            self._shops(canvas, quad, normal, ident, length)
        for low, high, light in ((0.975, 1.0, 0.75), (0.0, 0.35 / self.height, 0.6)):
            canvas.polygon(_patch(quad, 0.0, low, 1.0, high), shade(paint.darker(base, light), normal), ident)

    def _framed_windows(
        self, canvas: Canvas, quad, normal, ident: int, length: float, floors: int, bottom: float
    ) -> None:
        columns = max(1, round(length / float(self.rng.uniform(2.2, 3.2))))
        frame = paint.mix(self.color, (244, 242, 236), 0.6)
        self._grid(canvas, quad, normal, ident, columns, floors, bottom, 0.56, 0.66, frame, lights=False)
        self._grid(canvas, quad, normal, ident, columns, floors, bottom, 0.44, 0.56, (62, 74, 86))

    def _grid(
        self, canvas: Canvas, quad, normal, ident, columns, floors, bottom, wide, high, color, lights: bool = True
    ) -> None:
        """A grid of windows that fill the shares `wide` and `high` of their cells; some glass mirrors the sky."""
        left = (np.arange(columns) + (1 - wide) / 2) / columns
        low = bottom + (0.97 - bottom) * (np.arange(floors) + (1 - high) / 2) / floors
        u0, v0 = (grid.ravel() for grid in np.meshgrid(left, low))
        panes = _patches(quad, u0, v0, u0 + wide / columns, v0 + high * (0.97 - bottom) / floors)
        mirror = self.rng.random(len(panes)) < 0.3
        canvas.quads(panes, canvas.daylight.shade(color, normal), ident)
        if lights:
            canvas.quads(panes[mirror], canvas.daylight.shade(paint.mix(color, (196, 214, 230), 0.42), normal), ident)
            share = float(self.rng.uniform(0.05, 0.35))
            lit = canvas.lit_id(
                ident, paint.darker(_WARM if self.rng.random() < 0.75 else _COLD, float(self.rng.uniform(0.12, 0.35)))
            )
            on = self.rng.random(len(panes)) < share
            canvas.quads(panes[on & ~mirror], canvas.daylight.shade(color, normal), lit)

    def _shops(self, canvas: Canvas, quad, normal, ident: int, length: float) -> None:
        """Shop windows under colored signs and awnings."""
        count = max(1, round(length / 6.0))
        unit = 1.0 / count
        for index in range(count):
            left, right = (index + 0.06) * unit, (index + 0.94) * unit
            sign = paint.vary(self.rng, paint.pick(self.rng, SIGNS), 6.0)
            shade = canvas.daylight.shade
            pane = _patch(quad, left, 0.4 / self.height, right, 2.6 / self.height)
            open_late = self.rng.random() < 0.5
            lit = canvas.lit_id(ident, paint.darker(_WARM, float(self.rng.uniform(0.3, 0.7)))) if open_late else ident
            canvas.polygon(pane, shade((58, 66, 74), normal), lit)
            for shelf in (0.50, 0.72):
                canvas.polygon(
                    _patch(
                        quad,
                        left + shelf * unit * 0.9,
                        0.5 / self.height,
                        left + (shelf + 0.14) * unit * 0.9,
                        1.5 / self.height,
                    ),
                    shade(paint.vary(self.rng, (110, 104, 98), 22.0), normal),
                    lit,
                )
            canvas.polygon(
                _patch(quad, left + 0.30 * unit, 0.1 / self.height, left + 0.44 * unit, 2.4 / self.height),
                shade((92, 70, 56), normal),
                ident,
            )
            canvas.polygon(_patch(quad, left, 2.7 / self.height, right, 3.5 / self.height), shade(sign, normal), ident)
            stripe = paint.mix(sign, (255, 255, 255) if sum(sign) < 480 else (40, 40, 40), 0.7)
            canvas.polygon(
                _patch(quad, left + 0.2 * unit, 2.95 / self.height, right - 0.2 * unit, 3.25 / self.height),
                shade(stripe, normal),
                ident,
            )

    def _roof(self, canvas: Canvas, far: float) -> None:
        """A pitched roof whose ridge follows the street, with the gable towards the camera."""
        color = paint.vary(self.rng, paint.pick(self.rng, ROOFS), 8.0)
        ridge, top = (self.lateral + far) / 2, self.height + float(self.rng.uniform(1.8, 2.8))
        eave = self.lateral - 0.35 * self.side
        low = self.height - 0.15
        slope = self.street.points(
            [eave, eave, ridge, ridge], [self.start - 0.3, self.stop, self.stop, self.start - 0.3], [low, low, top, top]
        )
        ident = canvas.new_id(depth=max(2.0, (self.start + self.stop) / 2))
        normal = np.array([-0.6 * self.side, 0.8, 0.0])
        gable = self.street.points(
            [self.lateral, far, ridge], [self.start] * 3, [self.height - 0.1, self.height - 0.1, top]
        )
        canvas.polygon(gable, canvas.daylight.shade(self.color, np.array([0.0, 0.0, -1.0])), ident)
        canvas.polygon(slope, canvas.daylight.shade(color, normal), ident)


def _pixel_width(canvas: Canvas, quad: np.ndarray) -> float:
    """How many columns of the picture a wall (4, 3) covers."""
    clipped = clip_near(quad)
    if len(clipped) < 3:
        return 0.0
    columns = np.clip(canvas.camera.project(clipped)[:, 0], 0.0, canvas.camera.image_width)
    return float(columns.max() - columns.min())


def _patch(quad: np.ndarray, left: float, bottom: float, right: float, top: float) -> np.ndarray:
    return _patches(quad, *(np.array([edge]) for edge in (left, bottom, right, top)))[0]


def _patches(quad: np.ndarray, left, bottom, right, top) -> np.ndarray:
    """Rectangles (N, 4, 3) on a wall (4, 3) whose corners are bottom left, bottom right, top right, top left."""
    along, up = quad[1] - quad[0], quad[3] - quad[0]
    u = np.stack([left, right, right, left], axis=1)[..., None]
    v = np.stack([bottom, bottom, top, top], axis=1)[..., None]
    return quad[0] + u * along + v * up
