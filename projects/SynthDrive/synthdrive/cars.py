"""Passenger cars: a body lofted along a side profile, a narrower cabin of glass, wheels and lamps."""

from dataclasses import dataclass

import numpy as np

from synthdrive import paint
from synthdrive.model import Decal, Face, Model, circle


@dataclass(frozen=True)
class CarShape:
    """Side profile in meters. Positions along the car run from -length / 2 (rear) to length / 2 (front)."""

    length: float
    width: float
    belt: float  # height of the window sills
    roof: float
    hood: float  # height of the front edge
    trunk: float  # height of the rear edge; near the belt for cars without a trunk
    rear_glass: tuple[float, float]  # foot and head of the rear window along the car
    windshield: tuple[float, float]  # head and foot of the windshield along the car
    windows: tuple[tuple[float, float], ...]  # side windows as shares of the cabin
    clearance: float = 0.22
    wheel: float = 0.33


SEDAN = CarShape(4.7, 1.84, 0.95, 1.45, 0.74, 0.98, (-1.75, -1.05), (0.35, 1.15), ((0.12, 0.47), (0.51, 0.90)))
HATCHBACK = CarShape(4.1, 1.78, 0.96, 1.49, 0.76, 0.98, (-1.98, -1.66), (0.25, 1.05), ((0.12, 0.46), (0.50, 0.90)))
WAGON = CarShape(
    4.7, 1.84, 0.97, 1.50, 0.76, 0.99, (-2.28, -1.85), (0.35, 1.15), ((0.06, 0.28), (0.31, 0.60), (0.63, 0.92))
)
SUV = CarShape(
    4.65,
    1.92,
    1.10,
    1.74,
    0.98,
    1.12,
    (-2.28, -2.0),
    (0.42, 1.12),
    ((0.05, 0.26), (0.29, 0.59), (0.63, 0.92)),
    0.3,
    0.38,
)
MINIVAN = CarShape(
    4.85,
    1.92,
    1.08,
    1.82,
    0.90,
    1.10,
    (-2.40, -2.2),
    (0.75, 1.72),
    ((0.05, 0.32), (0.35, 0.62), (0.65, 0.90)),
    0.24,
    0.34,
)
SHAPES = (SEDAN, SEDAN, HATCHBACK, WAGON, SUV, SUV, MINIVAN)


def build_car(rng: np.random.Generator) -> tuple[Model, float, float]:
    """A car of random shape and color; with its length and width in meters."""
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    color = paint.vary(rng, paint.pick(rng, paint.CAR_COLORS), 6.0)
    taxi = rng.random() < 0.06
    model = Model()
    _underside(model, shape)
    _lower_body(model, shape, color)
    _cabin(model, shape, color)
    _mirrors(model, shape, color)
    if taxi:
        model.box(-0.35, -0.1, -0.3, 0.3, shape.roof, shape.roof + 0.16, (240, 200, 60))
    return model, shape.length, shape.width


def _underside(model: Model, shape: CarShape) -> None:
    """Dark floor pan and the tires seen below the bumpers."""
    half, reach = shape.width / 2, shape.length / 2
    model.box(-reach + 0.3, reach - 0.3, -half + 0.2, half - 0.2, 0.12, shape.clearance + 0.1, (16, 16, 18))
    for axle in _axles(shape):
        for left in (-half + 0.04, half - 0.26):
            model.box(axle - 0.26, axle + 0.26, left, left + 0.22, 0.0, 0.3, paint.TIRE)


def _axles(shape: CarShape) -> tuple[float, float]:
    return -shape.length / 2 + 0.88, shape.length / 2 - 0.86


def _lower_body(model: Model, shape: CarShape, color) -> None:
    """Bumpers, flanks with wheels, trunk lid and hood; corners are chamfered so that no view is a plain box."""
    half, reach, low = shape.width / 2, shape.length / 2, shape.clearance
    shoulder, nose = reach - 0.30, half - 0.20
    for side in (-1, 1):
        _flank(model, shape, color, side, shoulder)
        rear = [(-shoulder, side * half, low), (-reach, side * nose, low)]
        front = [(reach, side * nose, low), (shoulder, side * half, low)]
        _corner(model, rear, shape.trunk, color).patch(0.35, 0.58, 1.0, 0.86, paint.TAIL)
        _corner(model, front, shape.hood, color).patch(0.0, 0.62, 0.65, 0.90, paint.HEADLAMP)
    _rear(model, shape, color, nose)
    _front(model, shape, color, nose)
    _lid(model, -reach, -shoulder, shape.rear_glass[0], half, nose, shape.trunk, shape.belt, color)
    _lid(model, reach, shoulder, shape.windshield[1], half, nose, shape.hood, shape.belt, color)


def _corner(model: Model, edge: list[tuple[float, float, float]], high: float, color) -> Face:
    """An upright face over the chamfered edge between a flank and a bumper."""
    (a, right_a, _), (b, right_b, _) = edge
    face = model.face([*edge, (b, right_b, high), (a, right_a, high)], color, (0.0, 0.0, 0.5))
    return face.patch(0.0, 0.0, 1.0, 0.22, paint.darker(color, 0.55))


def _lid(model: Model, end, shoulder, glass, half: float, nose: float, low: float, belt: float, color) -> None:
    """Hood or trunk lid from the foot of a window at `glass` to the bumper at `end`, with its chamfered corners."""
    inside = (0.0, 0.0, 0.3)
    model.face([(glass, -half, belt), (glass, half, belt), (end, nose, low), (end, -nose, low)], color, inside)
    for side in (-1, 1):
        corner = [(glass, side * half, belt), (shoulder, side * half, low), (end, side * nose, low)]
        model.face(corner, color, inside)


def _flank(model: Model, shape: CarShape, color, side: int, reach: float) -> None:
    """One side below the windows: shoulder, doors, sill, wheels."""
    half, low, belt = shape.width / 2, shape.clearance, shape.belt
    ends = (-reach, reach) if side > 0 else (reach, -reach)
    outline = [
        (-reach, low),
        (reach, low),
        (reach, shape.hood),
        (shape.windshield[1], belt),
        (shape.rear_glass[0], belt),
        (-reach, shape.trunk),
    ]
    face = model.face([(f, side * half, u) for f, u in outline], color, (0.0, 0.0, 0.6))
    face.decals.append(_band(ends, side * half, low, low + 0.10, paint.darker(color, 0.45)))
    face.decals.append(_band(ends, side * half, belt - 0.17, belt - 0.14, paint.mix(color, (255, 255, 255), 0.22)))
    for door in (-0.95, 0.02, 0.98):
        face.decals.append(_band((door - 0.012, door + 0.012), side * half, low + 0.1, belt, paint.darker(color, 0.55)))
    for handle in (-0.8, 0.17):
        face.decals.append(
            _band((handle, handle + 0.18), side * half, belt - 0.12, belt - 0.085, paint.darker(color, 0.6))
        )
    for axle in _axles(shape):
        add_wheel(face, axle, side * half, shape.wheel)


def add_wheel(face: Face, forward: float, right: float, radius: float) -> None:
    """Arch, tire, rim and hub as details of a flank."""
    face.decals.append(Decal(circle(forward, right, radius + 0.02, radius + 0.07), (18, 18, 20)))
    face.decals.append(Decal(circle(forward, right, radius, radius), paint.TIRE))
    face.decals.append(Decal(circle(forward, right, radius, radius * 0.66), (148, 151, 156)))
    for turn in range(5):
        angle = turn * 2 * np.pi / 5 + forward
        hole = circle(
            forward + 0.4 * radius * np.cos(angle), right, radius * (1 + 0.4 * np.sin(angle)), radius * 0.13, 6
        )
        face.decals.append(Decal(hole, (52, 53, 56)))


def _band(ends, right: float, bottom: float, top: float, color) -> Decal:
    start, stop = ends
    return Decal(
        np.array([(start, right, bottom), (stop, right, bottom), (stop, right, top), (start, right, top)]), color
    )


def _rear(model: Model, shape: CarShape, color, nose: float) -> None:
    reach, low = shape.length / 2, shape.clearance
    face = model.face(
        [(-reach, -nose, low), (-reach, nose, low), (-reach, nose, shape.trunk), (-reach, -nose, shape.trunk)],
        color,
        (0.0, 0.0, 0.5),
    )
    face.patch(0.0, 0.0, 1.0, 0.20, paint.darker(color, 0.45))
    face.patch(0.0, 0.42, 1.0, 0.445, paint.darker(color, 0.6))
    face.patch(0.33, 0.50, 0.67, 0.66, paint.PLATE)
    for left in (0.0, 0.80):
        face.patch(left, 0.60, left + 0.20, 0.86, paint.TAIL, paint.TAIL_LIGHT)
        face.patch(left + 0.04, 0.66, left + 0.16, 0.74, (206, 60, 52))
    face.patch(0.1, 0.06, 0.2, 0.13, (150, 24, 22))
    face.patch(0.8, 0.06, 0.9, 0.13, (150, 24, 22))


def _front(model: Model, shape: CarShape, color, nose: float) -> None:
    reach, low = shape.length / 2, shape.clearance
    face = model.face(
        [(reach, nose, low), (reach, -nose, low), (reach, -nose, shape.hood), (reach, nose, shape.hood)],
        color,
        (0.0, 0.0, 0.5),
    )
    face.patch(0.08, 0.04, 0.92, 0.30, (34, 34, 37))
    face.patch(0.26, 0.52, 0.74, 0.86, (28, 28, 31))
    face.patch(0.28, 0.66, 0.72, 0.71, paint.CHROME)
    face.patch(0.45, 0.60, 0.55, 0.78, paint.CHROME)
    face.patch(0.36, 0.33, 0.64, 0.48, paint.PLATE)
    for left in (0.0, 0.79):
        face.patch(left, 0.60, left + 0.21, 0.90, paint.HEADLAMP, paint.HEAD_LIGHT)
        face.patch(left + 0.06, 0.66, left + 0.15, 0.84, (190, 200, 212))
        face.patch(left + 0.04, 0.12, left + 0.16, 0.22, (200, 200, 190))


def _cabin(model: Model, shape: CarShape, color) -> None:
    """Windows between pillars in the body color, and the roof."""
    foot, head = shape.width / 2 - 0.01, shape.width / 2 - 0.24
    (rear_foot, rear_head), (front_head, front_foot) = shape.rear_glass, shape.windshield
    belt, roof = shape.belt, shape.roof
    inside = ((rear_head + front_head) / 2, 0.0, belt)

    def wall(*corners) -> Face:
        return model.face(corners, color, inside)

    for side in (-1, 1):
        low, high = side * foot, side * head
        flank = wall((rear_foot, low, belt), (front_foot, low, belt), (front_head, high, roof), (rear_head, high, roof))
        for left, right in shape.windows:
            flank.patch(left, 0.06, right, 0.86, paint.GLASS).patch(left, 0.55, right, 0.86, (74, 88, 102))
    wall((rear_head, -head, roof), (rear_head, head, roof), (front_head, head, roof), (front_head, -head, roof))
    _rear_window(
        wall((rear_foot, -foot, belt), (rear_foot, foot, belt), (rear_head, head, roof), (rear_head, -head, roof))
    )
    _windshield(
        wall((front_foot, foot, belt), (front_foot, -foot, belt), (front_head, -head, roof), (front_head, head, roof))
    )


def _rear_window(face: Face) -> None:
    """Glass that mirrors the sky in its upper half, under the third brake lamp."""
    face.patch(0.08, 0.10, 0.92, 0.88, paint.GLASS).patch(0.10, 0.55, 0.90, 0.86, (70, 82, 95))
    face.patch(0.30, 0.90, 0.70, 0.96, (140, 22, 22))


def _windshield(face: Face) -> None:
    """Glass with the two front seats behind it."""
    face.patch(0.05, 0.03, 0.95, 0.93, (58, 68, 78)).patch(0.05, 0.55, 0.95, 0.93, (92, 108, 122))
    face.patch(0.60, 0.05, 0.84, 0.50, (40, 46, 52)).patch(0.16, 0.05, 0.40, 0.50, (40, 46, 52))


def _mirrors(model: Model, shape: CarShape, color) -> None:
    foot, half = shape.windshield[1] - 0.35, shape.width / 2
    for left in (-half - 0.16, half):
        model.box(foot - 0.08, foot + 0.06, left, left + 0.16, shape.belt + 0.02, shape.belt + 0.16, color)
