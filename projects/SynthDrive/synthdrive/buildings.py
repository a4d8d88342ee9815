"""Buildings beside the street: walls with floors and windows, shops, and houses under pitched roofs."""

import numpy as np

from synthdrive import paint
from synthdrive.camera import clip_near
from synthdrive.canvas import Canvas
from synthdrive.street import Street

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


class Wall:
    """One wall (4, 3): bottom left, bottom right, top right, top left. Details are shares of its length and height."""

    def __init__(self, canvas: Canvas, quad: np.ndarray, normal: tuple[float, float, float]) -> None:
        self.canvas, self.quad = canvas, quad
        self.length = float(np.linalg.norm(quad[1] - quad[0]))
        self.level = canvas.daylight.level(normal)
        self.columns = self._columns()  # of the image; walls that cover few get few details
        self.ident = canvas.new_id(plane=canvas.camera.inverse_depth_plane(quad)) if self.columns > 0.5 else 0

    def _columns(self) -> float:
        clipped = clip_near(self.quad)
        if len(clipped) < 3:
            return 0.0
        columns = np.clip(self.canvas.camera.project(clipped)[:, 0], 0.0, self.canvas.camera.image_width)
        return float(columns.max() - columns.min())

    def fill(self, color) -> None:
        """Paint the whole wall."""
        self.canvas.polygon(self.quad, self.canvas.daylight.lit(color, self.level), self.ident)

    def patch(self, left: float, bottom: float, right: float, top: float, color, ident: int | None = None) -> None:
        """Paint one rectangle."""
        edges = (np.array([edge]) for edge in (left, bottom, right, top))
        shaded = self.canvas.daylight.lit(color, self.level)
        self.canvas.polygon(self.patches(*edges)[0], shaded, self.ident if ident is None else ident)

    def paint(self, patches: np.ndarray, color, ident: int | None = None) -> None:
        """Paint world rectangles (N, 4, 3) that lie on the wall."""
        self.canvas.quads(patches, self.canvas.daylight.lit(color, self.level), self.ident if ident is None else ident)

    def patches(self, left, bottom, right, top) -> np.ndarray:
        """Rectangles (N, 4, 3) in the world."""
        along, up = self.quad[1] - self.quad[0], self.quad[3] - self.quad[0]
        u = np.stack([left, right, right, left], axis=1)[..., None]
        v = np.stack([bottom, bottom, top, top], axis=1)[..., None]
        return self.quad[0] + u * along + v * up

    def grid(self, columns: int, floors: int, bottom: float, wide: float, high: float) -> np.ndarray:
        """Windows (N, 4, 3) above `bottom` that fill the shares `wide` and `high` of their cells."""
        left = (np.arange(columns) + (1 - wide) / 2) / columns
        low = bottom + (0.97 - bottom) * (np.arange(floors) + (1 - high) / 2) / floors
        u0, v0 = (grid.ravel() for grid in np.meshgrid(left, low))
        return self.patches(u0, v0, u0 + wide / columns, v0 + high * (0.97 - bottom) / floors)


class Building:
    """One building: a street-side wall from `start` to `stop` at a lateral, and an end wall towards the camera."""

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
        storeys = float(rng.choice([8.0, 11.0, 14.0, 18.0, 24.0, 32.0]) + rng.uniform(0, 2))
        self.height = float(rng.uniform(4.8, 6.4)) if house else storeys
        self.style = "windows" if house else str(rng.choice(["windows", "windows", "windows", "ribbons", "glass"]))
        self.color = (92, 112, 128) if self.style == "glass" else paint.vary(rng, paint.pick(rng, WALLS), 9.0)

    def draw(self, canvas: Canvas) -> None:
        """Paint the end wall towards the camera, then the street side."""
        far = self.lateral + self.side * self.depth
        if self.house:
            self._roof(canvas, far)
        if self.start > 2.0:
            end = self._quad(self.lateral, self.start, far, self.start)
            self._wall(Wall(canvas, end, (0.0, 0.0, -1.0)), shops=False)
        front = self._quad(self.lateral, self.start, self.lateral, self.stop)
        self._wall(Wall(canvas, front, (-float(self.side), 0.0, 0.0)), shops=not self.house)

    def _quad(self, lateral_a: float, s_a: float, lateral_b: float, s_b: float) -> np.ndarray:
        height = self.height
        laterals = [lateral_a, lateral_b, lateral_b, lateral_a]
        return self.street.points(laterals, [s_a, s_b, s_b, s_a], [0.0, 0.0, height, height])

    def _wall(self, wall: Wall, shops: bool) -> None:
        if wall.columns <= 0.5:
            return
        wall.fill(self.color)
        if wall.columns < 6.0:
            return
        ground = 4.0 if shops else 0.6
        self._windows(wall, max(1, round((self.height - ground) / 3.1)), ground / self.height)
        if shops:
            for index in range(count := max(1, round(wall.length / 6.0))):
                self._shop(wall, index / count, 1.0 / count)
        wall.patch(0.0, 0.975, 1.0, 1.0, paint.darker(self.color, 0.75))
        wall.patch(0.0, 0.0, 1.0, 0.35 / self.height, paint.darker(self.color, 0.6))

    def _windows(self, wall: Wall, floors: int, bottom: float) -> None:
        """Single windows in light frames, ribbons of glass, or a glass front."""
        if self.style == "glass":
            self._panes(
                wall, wall.grid(max(2, round(wall.length / 1.6)), floors * 2, bottom, 0.93, 0.93), (104, 126, 146)
            )
        elif self.style == "ribbons":
            self._panes(wall, wall.grid(max(1, round(wall.length / 4.5)), floors, bottom, 0.97, 0.5), (70, 84, 96))
        else:
            columns = max(1, round(wall.length / float(self.rng.uniform(2.2, 3.2))))
            if wall.columns > 14.0:
                frames = wall.grid(columns, floors, bottom, 0.56, 0.66)
                wall.paint(frames, paint.mix(self.color, (244, 242, 236), 0.6))
            self._panes(wall, wall.grid(columns, floors, bottom, 0.44, 0.56), (62, 74, 86))

    def _panes(self, wall: Wall, panes: np.ndarray, color) -> None:
        """Glass, of which some mirrors the sky and some is lit at night."""
        mirror = self.rng.random(len(panes)) < 0.3
        lit = (self.rng.random(len(panes)) < float(self.rng.uniform(0.05, 0.35))) & ~mirror
        lamp = paint.darker(_WARM if self.rng.random() < 0.75 else _COLD, float(self.rng.uniform(0.12, 0.35)))
        wall.paint(panes[~mirror & ~lit], color)
        wall.paint(panes[mirror], paint.mix(color, (196, 214, 230), 0.42))
        wall.paint(panes[lit], color, wall.canvas.lit_id(wall.ident, lamp))

    def _shop(self, wall: Wall, left: float, unit: float) -> None:
        """A shop window with goods and a door under a colored sign; every other one is lit at night."""
        lamp = paint.darker(_WARM, float(self.rng.uniform(0.3, 0.7)))
        inside = wall.canvas.lit_id(wall.ident, lamp) if self.rng.random() < 0.5 else wall.ident
        sign = paint.vary(self.rng, paint.pick(self.rng, SIGNS), 6.0)
        writing = paint.mix(sign, (255, 255, 255) if sum(sign) < 480 else (40, 40, 40), 0.7)
        meter = 1.0 / self.height

        def patch(start: float, low: float, stop: float, high: float, color, ident: int) -> None:
            wall.patch(left + start * unit, low * meter, left + stop * unit, high * meter, color, ident)

        patch(0.06, 0.4, 0.94, 2.6, (58, 66, 74), inside)
        for shelf in (0.52, 0.70):
            patch(shelf, 0.5, shelf + 0.13, 1.5, paint.vary(self.rng, (110, 104, 98), 22.0), inside)
        patch(0.30, 0.1, 0.44, 2.4, (92, 70, 56), wall.ident)
        patch(0.06, 2.7, 0.94, 3.5, sign, wall.ident)
        patch(0.26, 2.95, 0.74, 3.25, writing, wall.ident)

    def _roof(self, canvas: Canvas, far: float) -> None:
        """A pitched roof whose ridge follows the street, with the gable towards the camera."""
        color = paint.vary(self.rng, paint.pick(self.rng, ROOFS), 8.0)
        ridge, top = (self.lateral + far) / 2, self.height + float(self.rng.uniform(1.8, 2.8))
        eave, low = self.lateral - 0.35 * self.side, self.height - 0.15
        near = self.start - 0.3
        slope = self.street.points([eave, eave, ridge, ridge], [near, self.stop, self.stop, near], [low, low, top, top])
        gable = self.street.points([self.lateral, far, ridge], [self.start] * 3, [low, low, top])
        ident = canvas.new_id(depth=max(2.0, (self.start + self.stop) / 2))
        canvas.polygon(gable, canvas.daylight.shade(self.color, (0.0, 0.0, -1.0)), ident)
        canvas.polygon(slope, canvas.daylight.shade(color, (-0.6 * self.side, 0.8, 0.0)), ident)
