"""The street: a gently curved road with lanes, curbs and sidewalks, and how it is painted."""

from dataclasses import dataclass

import numpy as np

from synthdrive import paint
from synthdrive.canvas import GROUND, ROAD, Canvas
from synthdrive.model import Place

END = 260.0  # meters of road that are painted
_UP = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Street:
    """Right-hand traffic. `lateral` is meters right of the center line, `s` meters ahead of the camera."""

    center: float  # x of the center line beside the camera
    curvature: float  # 1 / meters; positive bends right
    lane: float  # lane width
    lanes_right: int  # lanes in the camera's direction
    lanes_left: int
    parking: float  # width of the parking strips, 0 without
    sidewalk: float  # width of the sidewalks, 0 on highways
    crossing: float | None  # s of the near edge of a cross street
    crossing_width: float
    kind: str  # "city", "suburb", "country" or "highway"

    @property
    def right_edge(self) -> float:
        """Lateral of the right curb."""
        return self.lanes_right * self.lane + self.parking

    @property
    def left_edge(self) -> float:
        """Lateral of the left curb (negative)."""
        return -self.lanes_left * self.lane - self.parking

    def center_x(self, s):
        """World x of the center line at s."""
        return self.center + 0.5 * self.curvature * s * s

    def points(self, lateral, s, up=0.0) -> np.ndarray:
        """World points (N, 3) at these laterals, distances and heights (broadcast together)."""
        count = max(np.size(lateral), np.size(s), np.size(up))
        world = np.empty((count, 3))
        s = np.asarray(s, dtype=np.float64)
        world[:, 0] = self.center_x(s) + lateral
        world[:, 1] = up
        world[:, 2] = s
        return world

    def place(self, lateral: float, s: float, heading: float = 0.0) -> Place:
        """Where a thing stands; heading 0 follows the road away from the camera."""
        return Place(float(self.center_x(s)) + lateral, s, heading + self.curvature * s)

    def in_crossing(self, start: float, stop: float, margin: float = 0.0) -> bool:
        """Whether [start, stop] touches the cross street."""
        if self.crossing is None:
            return False
        return start < self.crossing + self.crossing_width + margin and stop > self.crossing - margin


def random_street(rng: np.random.Generator) -> Street:
    """Sample a street; about half have a cross street in view."""
    kind = str(rng.choice(["city", "suburb", "country", "highway"], p=[0.46, 0.26, 0.14, 0.14]))
    lanes = {"city": (1, 4), "suburb": (1, 3), "country": (1, 2), "highway": (2, 4)}[kind]
    lanes_right = int(rng.integers(*lanes))
    lane = float(rng.uniform(3.1, 3.6))
    ego = int(rng.integers(lanes_right))
    crossing = float(rng.uniform(13.0, 34.0)) if kind in ("city", "suburb") and rng.random() < 0.62 else None
    return Street(
        center=-(ego + 0.5) * lane + float(rng.normal(0.0, 0.25)),
        curvature=float(rng.normal(0.0, 1.0 / 900.0)) if rng.random() < 0.6 else 0.0,
        lane=lane,
        lanes_right=lanes_right,
        lanes_left=int(rng.integers(*lanes)) if kind == "highway" else max(1, lanes_right - int(rng.integers(2))),
        parking=2.3 if kind == "suburb" or (kind == "city" and rng.random() < 0.6) else 0.0,
        sidewalk={"city": float(rng.uniform(2.6, 4.5)), "suburb": float(rng.uniform(1.8, 2.6))}.get(kind, 0.0),
        crossing=crossing,
        crossing_width=float(rng.uniform(7.0, 11.0)),
        kind=kind,
    )


class RoadPainter:
    """Paints ground, asphalt, sidewalks and markings of one street."""

    def __init__(self, canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
        self.canvas, self.street = canvas, street
        level = float(rng.uniform(86, 122))
        self.asphalt = (level, level, level * float(rng.uniform(0.97, 1.05)))
        grass = (float(rng.uniform(84, 118)), float(rng.uniform(118, 142)), float(rng.uniform(56, 76)))
        paved = paint.vary(rng, (158, 152, 144), 10.0)
        self.ground = paved if street.kind == "city" else grass
        self.walk = paint.vary(rng, (172, 167, 160), 8.0)
        wear = float(rng.uniform(0.55, 1.0))
        self.white = paint.mix(self.asphalt, (238, 238, 234), wear)
        self.yellow = paint.mix(self.asphalt, (232, 182, 52), wear)
        self.yellow_center = bool(rng.random() < 0.6)
        self.zebra = street.crossing is not None and rng.random() < 0.85
        self.rng = rng

    def paint(self) -> None:
        """The whole ground, up to the horizon."""
        street = self.street
        rows = self.canvas.camera
        outline = np.array(
            [
                [-9.0, rows.horizon],
                [rows.image_width + 9.0, rows.horizon],
                [rows.image_width + 9.0, rows.image_height + 9.0],
                [-9.0, rows.image_height + 9.0],
            ]
        )
        self.canvas.fill([outline], self._lit(self.ground), GROUND)
        if street.sidewalk:
            self.strip(
                street.left_edge - street.sidewalk, street.right_edge + street.sidewalk, 1.0, END, self.walk, GROUND
            )
        if street.crossing is not None:
            self._cross_street()
        self.strip(street.left_edge, street.right_edge, 1.0, END, self.asphalt, ROAD)
        self._repairs()
        self._curbs()
        self._markings()
        if self.zebra:
            self._zebra(street.crossing - 4.2)
            self._zebra(street.crossing + street.crossing_width + 1.2)

    def strip(self, left: float, right: float, start: float, stop: float, color, ident: int) -> None:
        """Ground between two laterals and two distances, following the curve."""
        count = 2 if self.street.curvature == 0.0 else max(2, int(4 * np.log2(stop / start) + 2))
        s = start * (stop / start) ** (np.arange(count) / (count - 1))
        outline = np.concatenate([self.street.points(left, s), self.street.points(right, s[::-1])])
        self.canvas.polygon(outline, self._lit(color), ident)

    def _lit(self, color) -> np.ndarray:
        return self.canvas.daylight.shade(color, _UP)

    def _cross_street(self) -> None:
        near, far = self.street.crossing, self.street.crossing + self.street.crossing_width
        for margin, color, ident in ((self.street.sidewalk, self.walk, GROUND), (0.0, self.asphalt, ROAD)):
            outline = self.street.points(
                [-120.0, 120.0, 120.0, -120.0], [near - margin, near - margin, far + margin, far + margin]
            )
            self.canvas.polygon(outline, self._lit(color), ident)
        for left, right in ((-110.0, self.street.left_edge - 5.0), (self.street.right_edge + 5.0, 110.0)):
            middle = (near + far) / 2
            outline = self.street.points(
                [left, right, right, left], [middle - 0.08, middle - 0.08, middle + 0.08, middle + 0.08]
            )
            self.canvas.polygon(outline, self._lit(self.yellow if self.yellow_center else self.white), ROAD)

    def _repairs(self) -> None:
        """Darker asphalt patches and manhole covers."""
        for _ in range(int(self.rng.integers(1, 5))):
            left = float(self.rng.uniform(self.street.left_edge, self.street.right_edge - 1.5))
            start = float(self.rng.uniform(5.0, 30.0))
            color = paint.darker(self.asphalt, float(self.rng.uniform(0.82, 1.1)))
            self.strip(
                left,
                left + float(self.rng.uniform(0.6, 1.6)),
                start,
                start + float(self.rng.uniform(2.0, 9.0)),
                color,
                ROAD,
            )
        for _ in range(int(self.rng.integers(0, 3))):
            angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            lateral, s = (
                self.rng.uniform(self.street.left_edge + 1, self.street.right_edge - 1),
                self.rng.uniform(6.0, 22.0),
            )
            self.canvas.polygon(
                self.street.points(lateral + 0.35 * np.cos(angle), s + 0.35 * np.sin(angle)),
                self._lit(paint.darker(self.asphalt, 0.6)),
                ROAD,
            )

    def _curbs(self) -> None:
        """Light curb stones with a dark gutter, interrupted by the cross street."""
        street = self.street
        pieces = (
            [(1.0, END)]
            if street.crossing is None
            else [(1.0, street.crossing), (street.crossing + street.crossing_width, END)]
        )
        for start, stop in pieces:
            for edge, side in ((street.left_edge, -1), (street.right_edge, 1)):
                if not street.sidewalk:
                    self.strip(
                        *sorted((edge, edge + 0.8 * side)), start, stop, paint.darker(self.asphalt, 1.12), GROUND
                    )
                    continue
                self.strip(*sorted((edge, edge - 0.14 * side)), start, stop, paint.darker(self.asphalt, 0.7), ROAD)
                self.strip(*sorted((edge, edge + 0.22 * side)), start, stop, (196, 193, 186), GROUND)

    def _markings(self) -> None:
        """Center line, lane dashes, edge lines."""
        street, lane = self.street, self.street.lane
        center = self.yellow if self.yellow_center else self.white
        pieces = (
            [(1.0, END)]
            if street.crossing is None
            else [(1.0, street.crossing - 5.5), (street.crossing + street.crossing_width + 5.5, END)]
        )
        double = street.lanes_right + street.lanes_left > 2 or self.rng.random() < 0.4
        for start, stop in pieces:
            if street.kind == "highway":
                self._median(start, stop)
            elif double:
                self.strip(-0.20, -0.07, start, stop, center, ROAD)
                self.strip(0.07, 0.20, start, stop, center, ROAD)
            else:
                self._dashes(0.0, start, stop, center)
            for index in range(1, street.lanes_right):
                self._dashes(index * lane, start, stop, self.white)
            for index in range(1, street.lanes_left):
                self._dashes(-index * lane, start, stop, self.white)
            if street.parking or street.kind in ("country", "highway"):
                self.strip(
                    street.lanes_right * lane - 0.07, street.lanes_right * lane + 0.07, start, stop, self.white, ROAD
                )
                self.strip(
                    -street.lanes_left * lane - 0.07, -street.lanes_left * lane + 0.07, start, stop, self.white, ROAD
                )

    def _median(self, start: float, stop: float) -> None:
        self.strip(-0.55, -0.40, start, stop, self.yellow, ROAD)
        self.strip(0.40, 0.55, start, stop, self.yellow, ROAD)

    def _dashes(self, lateral: float, start: float, stop: float, color) -> None:
        offset = float(self.rng.uniform(0.0, 9.0))
        begin = np.arange(start + offset - 9.0, min(stop, 130.0), 9.0)
        begin = begin[begin + 3.0 > start]
        edges = np.full(len(begin), lateral - 0.075)
        self._bars(edges, edges + 0.15, np.maximum(begin, start), np.minimum(begin + 3.0, stop), color)

    def _bars(self, left, right, near, far, color) -> None:
        """Many short rectangles (N,) on the road."""
        sides, ends = np.stack([left, right, right, left], axis=1), np.stack([near, near, far, far], axis=1)
        self.canvas.quads(self.street.points(sides.ravel(), ends.ravel()).reshape(-1, 4, 3), self._lit(color), ROAD)

    def _zebra(self, start: float) -> None:
        """A pedestrian crossing of bars along the road, 3 m deep, and a stop line before it."""
        left = np.arange(self.street.left_edge + 0.3, self.street.right_edge - 0.4, 0.95)
        near = np.full(len(left), start)
        self._bars(left, left + 0.5, near, near + 3.0, self.white)
        if start < self.street.crossing:
            self.strip(
                0.2, self.street.right_edge - self.street.parking - 0.2, start - 1.6, start - 1.15, self.white, ROAD
            )
