"""Things beside the street: buildings, trees, hedges, lamps, signs. Each has a ground rectangle and paints itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from synthdrive.buildings import Building
from synthdrive.canvas import Canvas
from synthdrive.furniture import Posts, draw_guard_rail
from synthdrive.street import Street
from synthdrive.vegetation import draw_bush, draw_hedge, draw_tree

FAR = 150.0  # meters; beyond, only the skyline


@dataclass(frozen=True)
class Thing:
    """Something solid beside the street; `shadow` is (radius, height) of the part that casts a shadow, if any."""

    bounds: np.ndarray
    paint: Callable[[Canvas], None]
    foot: tuple[float, float] | None = None
    shadow: tuple[float, float] | None = None


class Surroundings:
    """Collects the things along one street; every thing draws from its own random stream."""

    def __init__(self, street: Street, rng: np.random.Generator) -> None:
        self.street, self.rng = street, rng
        self.things: list[Thing] = []

    def build(self) -> list[Thing]:
        """All things of this kind of street."""
        {"city": self._city, "suburb": self._suburb, "country": self._country, "highway": self._highway}[
            self.street.kind
        ]()
        if self.street.crossing is not None and self.rng.random() < 0.8:
            self._traffic_lights()
        return self.things

    def _edges(self) -> list[tuple[int, float]]:
        street = self.street
        return [(-1, -street.left_edge + street.sidewalk), (1, street.right_edge + street.sidewalk)]

    def _city(self) -> None:
        for side, edge in self._edges():
            if self.rng.random() < 0.88:
                self._row_of_buildings(side, edge + float(self.rng.uniform(0.1, 2.5)), False)
            else:
                self._row_of_trees(side, edge + 4.0, 7.0, 8.0)
        sodium = bool(self.rng.random() < 0.6)
        self._lamps(float(self.rng.uniform(20.0, 30.0)), sodium)
        if self.rng.random() < 0.55:
            for side, edge in self._edges():
                self._row_of_trees(side, edge - self.street.sidewalk + 0.9, float(self.rng.uniform(9.0, 14.0)), 5.5)
        self._signs(3)

    def _suburb(self) -> None:
        for side, edge in self._edges():
            setback = float(self.rng.uniform(4.0, 8.0))
            self._row_of_buildings(side, edge + setback, True)
            if self.rng.random() < 0.5:
                self._hedges(side, edge + 0.5)
            self._row_of_trees(side, edge + float(self.rng.uniform(1.2, 3.0)), float(self.rng.uniform(10.0, 18.0)), 6.5)
            self._bushes(side, edge + 2.5)
        if self.rng.random() < 0.5:
            self._utility_poles()
        else:
            self._lamps(28.0, True)
        self._signs(2)

    def _country(self) -> None:
        for side, edge in self._edges():
            self._row_of_trees(side, edge + float(self.rng.uniform(2.5, 5.0)), float(self.rng.uniform(7.0, 16.0)), 9.0)
            self._row_of_trees(side, edge + 14.0, 9.0, 10.0)
            self._bushes(side, edge + 2.0)
        if self.rng.random() < 0.5:
            self._utility_poles()
        self._signs(2)

    def _highway(self) -> None:
        for side, edge in self._edges():
            if self.rng.random() < 0.75:
                self._guard_rail(side * (edge + 1.4))
            self._row_of_trees(side, edge + float(self.rng.uniform(6.0, 12.0)), 8.0, 9.0)
        if self.rng.random() < 0.6:
            self._lamps(38.0, False)
        if self.rng.random() < 0.5:
            self._post(
                1, self.street.right_edge + 2.2, float(self.rng.uniform(25.0, 60.0)), lambda posts: posts.gantry(6.0)
            )

    def _stream(self) -> np.random.Generator:
        return np.random.default_rng(int(self.rng.integers(2**31)))

    def _row_of_buildings(self, side: int, lateral: float, houses: bool) -> None:
        start = float(self.rng.uniform(2.0, 6.0))
        while start < FAR:
            stop = start + float(self.rng.uniform(9.0, 13.0) if houses else self.rng.uniform(10.0, 26.0))
            if self.street.in_crossing(start, stop, 3.0 if not houses else 5.0):
                crossing_end = self.street.crossing + self.street.crossing_width + 5.0
                corner = self.street.crossing - 4.0
                if corner - start > 7.0:
                    self._building(side, lateral, start, corner, houses)
                start = crossing_end
                continue
            self._building(side, lateral, start, stop, houses)
            start = stop + (float(self.rng.uniform(4.0, 9.0)) if houses else float(self.rng.choice([0.05, 0.05, 3.0])))

    def _building(self, side: int, lateral: float, start: float, stop: float, house: bool) -> None:
        building = Building(self.street, self._stream(), side, side * lateral, start, stop, house)
        near, far = side * lateral, side * (lateral + building.depth)
        middle = float(self.street.center_x((start + stop) / 2))
        self.things.append(
            Thing(np.array([min(near, far) + middle, start, max(near, far) + middle, stop]), building.draw)
        )

    def _row_of_trees(self, side: int, lateral: float, spacing: float, height: float) -> None:
        for s in np.arange(float(self.rng.uniform(7.0, 7.0 + spacing)), FAR * 0.8, spacing):
            if self.rng.random() < 0.2 or self.street.in_crossing(s, s, 3.0):
                continue
            tall = height * float(self.rng.uniform(0.75, 1.25))
            place = self.street.place(
                side * (lateral + float(self.rng.normal(0, 0.3))), float(s) + float(self.rng.normal(0, 0.5))
            )
            self._plant(
                place,
                0.3,
                lambda canvas, place=place, tall=tall, rng=self._stream(): draw_tree(canvas, place, rng, tall),
                (0.3 * tall, 0.66 * tall),
            )

    def _bushes(self, side: int, lateral: float) -> None:
        for s in np.exp(self.rng.uniform(np.log(7.0), np.log(60.0), int(self.rng.integers(2, 7)))):
            if self.street.in_crossing(s, s, 3.0):
                continue
            place = self.street.place(side * (lateral + float(self.rng.uniform(0, 2.5))), float(s))
            tall = float(self.rng.uniform(0.6, 1.8))
            self._plant(
                place,
                0.5,
                lambda canvas, place=place, tall=tall, rng=self._stream(): draw_bush(canvas, place, rng, tall),
                (0.8 * tall, 0.4 * tall),
            )

    def _plant(self, place, half: float, paint, shadow) -> None:
        bounds = np.array([place.x - half, place.z - half, place.x + half, place.z + half])
        self.things.append(Thing(bounds, paint, (place.x, place.z), shadow))

    def _hedges(self, side: int, lateral: float) -> None:
        tall = float(self.rng.uniform(0.8, 1.7))
        for start in np.arange(6.0, 80.0, 12.0):
            if self.rng.random() < 0.3 or self.street.in_crossing(start, start + 11.0, 3.0):
                continue
            points = self.street.points([side * lateral] * 2, [start, start + 10.0])
            bounds = np.array([points[:, 0].min(), start, points[:, 0].max() + 0.05, start + 10.0])
            self.things.append(
                Thing(bounds, lambda canvas, points=points, rng=self._stream(): draw_hedge(canvas, points, tall, rng))
            )

    def _post(self, side: int, lateral: float, s: float, draw: Callable[[Posts], None]) -> None:
        place = self.street.place(side * lateral, s)
        rng = self._stream()
        bounds = np.array([place.x - 0.1, place.z - 0.1, place.x + 0.1, place.z + 0.1])
        self.things.append(
            Thing(bounds, lambda canvas: draw(Posts(canvas, place, -side, rng)), (place.x, place.z), (0.12, 2.5))
        )

    def _lamps(self, spacing: float, sodium: bool) -> None:
        first = float(self.rng.uniform(8.0, 8.0 + spacing))
        for index, s in enumerate(np.arange(first, 130.0, spacing)):
            for side, edge in self._edges():
                if not self.street.in_crossing(s, s, 1.0) and (side > 0) == (index % 2 == 0):
                    self._post(
                        side,
                        edge - max(0.0, self.street.sidewalk - 0.5),
                        float(s),
                        lambda posts: posts.street_lamp(sodium),
                    )

    def _utility_poles(self) -> None:
        side, edge = self._edges()[int(self.rng.integers(2))]
        for s in np.arange(float(self.rng.uniform(9.0, 25.0)), 120.0, 26.0):
            if not self.street.in_crossing(s, s, 1.0):
                self._post(side, edge + 0.8, float(s), lambda posts: posts.utility_pole())

    def _signs(self, count: int) -> None:
        for _ in range(int(self.rng.integers(0, count + 1))):
            side, edge = self._edges()[int(self.rng.integers(2))]
            s = float(self.rng.uniform(9.0, 45.0))
            if not self.street.in_crossing(s, s, 1.0):
                self._post(side, edge - max(-0.6, self.street.sidewalk - 0.6), s, lambda posts: posts.sign())

    def _traffic_lights(self) -> None:
        overhead = bool(self.rng.random() < 0.5)
        after = (
            self.street.crossing + self.street.crossing_width + (4.6 if overhead else -self.street.crossing_width - 4.8)
        )
        for side, edge in self._edges():
            self._post(
                side, edge - max(0.0, self.street.sidewalk - 0.7), after, lambda posts: posts.traffic_light(overhead)
            )

    def _guard_rail(self, lateral: float) -> None:
        for start, stop in ((5.0, 12.0), (12.0, 28.0), (28.0, 70.0), (70.0, 140.0)):
            s = np.linspace(stop, start, 6)
            points = self.street.points(lateral, s)
            bounds = np.array([points[:, 0].min() - 0.05, start, points[:, 0].max() + 0.05, stop])
            self.things.append(Thing(bounds, lambda canvas, points=points: draw_guard_rail(canvas, points)))
