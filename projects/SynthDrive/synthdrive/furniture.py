"""Street furniture: lamps, traffic lights, signs, utility poles and guard rails."""

import numpy as np

from synthdrive import paint
from synthdrive.canvas import Canvas
from synthdrive.model import Place

_FRONT = np.array([0.0, 0.3, -0.95])
_SODIUM, _LED = (1.0, 0.68, 0.32), (0.95, 0.96, 1.0)


class Posts:
    """Draws upright things at a place; `inward` is -1 or 1, the side (in x) on which the road lies."""

    def __init__(self, canvas: Canvas, place: Place, inward: int, rng: np.random.Generator) -> None:
        self.canvas, self.place, self.inward, self.rng = canvas, place, inward, rng
        self.ident = canvas.new_id(depth=max(1.0, place.z))

    def at(self, across: float, up: float) -> np.ndarray:
        """The world point `across` meters towards the road and `up` meters high."""
        return np.array([self.place.x + across * self.inward, up, self.place.z])

    def pole(self, height: float, radius: float, color) -> None:
        """An upright pole."""
        self.canvas.limb(self.at(0, 0), self.at(0, height), radius, radius * 0.8, self._lit(color), self.ident)

    def plate(self, across: float, up: float, half_width: float, half_height: float, color) -> np.ndarray:
        """A rectangle facing the camera; its corners (4, 3)."""
        corners = np.stack(
            [self.at(across + a * half_width, up + b * half_height) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        )
        self.canvas.polygon(corners, self._lit(color), self.ident)
        return corners

    def _lit(self, color) -> np.ndarray:
        return self.canvas.daylight.shade(color, _FRONT)

    def street_lamp(self, sodium: bool) -> None:
        """A pole 8 m high with an arm over the road."""
        self.pole(8.0, 0.09, (96, 100, 104))
        self.canvas.limb(self.at(0, 7.9), self.at(1.9, 8.3), 0.05, 0.04, self._lit((96, 100, 104)), self.ident)
        head = self.plate(2.2, 8.28, 0.42, 0.09, (206, 208, 204))
        self.canvas.lamp(head, _SODIUM if sodium else _LED, 1.6, "street", self.ident)

    def traffic_light(self, overhead: bool) -> None:
        """Red, amber and green on a pole, or on an arm over the road."""
        across, up = (4.2, 5.6) if overhead else (0.0, 3.2)
        self.pole(5.9 if overhead else 2.9, 0.09, (70, 74, 76))
        if overhead:
            self.canvas.limb(self.at(0, 5.7), self.at(4.4, 5.9), 0.07, 0.05, self._lit((70, 74, 76)), self.ident)
        self.plate(across, up, 0.23, 0.58, (30, 34, 32))
        state = int(self.rng.integers(3))
        for index, (color, light) in enumerate(_SIGNALS):
            center, lit = self.at(across, up + 0.37 - 0.37 * index), index == state
            self.canvas.disc(center, 0.14, color if lit else self._lit(paint.darker(color, 0.3)), self.ident)
            if lit:
                self.canvas.lamp(
                    center + np.array([[-0.14, -0.14, 0.0], [0.14, 0.14, 0.0]]), light, 0.22, "signal", self.ident
                )

    def sign(self) -> None:
        """A round, triangular or rectangular traffic sign."""
        self.pole(2.3, 0.04, (150, 152, 154))
        kind, center = int(self.rng.integers(4)), self.at(0, 2.55)
        if kind == 0:
            self.canvas.disc(center, 0.36, self._lit((200, 40, 40)), self.ident)
            self.canvas.disc(center, 0.26, self._lit((240, 240, 236)), self.ident)
        elif kind == 1:
            for size, color in ((0.44, (204, 40, 40)), (0.28, (242, 240, 232))):
                corners = np.stack(
                    [self.at(-size, 2.5 - size * 0.6), self.at(size, 2.5 - size * 0.6), self.at(0, 2.5 + size)]
                )
                self.canvas.polygon(corners, self._lit(color), self.ident)
        elif kind == 2:
            self.plate(0, 2.5, 0.33, 0.33, (38, 92, 176))
            self.plate(0, 2.5, 0.10, 0.22, (240, 240, 240))
        else:
            self.plate(0, 2.4, 0.30, 0.42, (240, 240, 238))
            self.plate(0, 2.4, 0.20, 0.12, (50, 50, 52))

    def utility_pole(self) -> None:
        """A wooden pole with a cross arm."""
        self.pole(9.0, 0.13, (104, 84, 66))
        self.canvas.limb(self.at(-1.0, 8.3), self.at(1.0, 8.3), 0.06, 0.06, self._lit((104, 84, 66)), self.ident)

    def gantry(self, span: float) -> None:
        """A green sign on a mast arm over a highway."""
        self.pole(7.2, 0.16, (150, 154, 156))
        self.canvas.limb(self.at(0, 6.9), self.at(span, 6.9), 0.10, 0.08, self._lit((150, 154, 156)), self.ident)
        self.plate(span * 0.55, 6.3, span * 0.34, 0.95, (236, 238, 236))
        self.plate(span * 0.55, 6.3, span * 0.34 - 0.08, 0.87, (30, 110, 70))
        for up, wide in ((6.75, 0.6), (6.2, 0.75)):
            self.plate(span * 0.5, up, span * 0.34 * wide, 0.14, (232, 236, 232))


_SIGNALS = (((226, 50, 40), (1.0, 0.12, 0.08)), ((240, 176, 40), (1.0, 0.66, 0.1)), ((50, 196, 110), (0.15, 1.0, 0.5)))


def draw_guard_rail(canvas: Canvas, points: np.ndarray) -> None:
    """A steel rail on posts along ground points (N, 3), nearest last."""
    ident = canvas.new_id(depth=max(1.0, float(points[:, 2].mean())))
    steel, dark = canvas.daylight.shade((178, 182, 184), _FRONT), canvas.daylight.shade((110, 114, 116), _FRONT)
    for point in points:
        canvas.limb(point, point + (0.0, 0.7, 0.0), 0.05, 0.05, dark, ident)
    for start, end in zip(points[:-1], points[1:]):
        lift = np.array([[0.0, 0.48, 0.0], [0.0, 0.48, 0.0], [0.0, 0.78, 0.0], [0.0, 0.78, 0.0]])
        canvas.polygon(np.stack([start, end, end, start]) + lift, steel, ident)
        canvas.polygon(
            np.stack([start, end, end, start]) + lift * (0, 1, 0) * np.array([[1.26], [1.26], [0.84], [0.84]]),
            dark,
            ident,
        )
