"""Bikes and motorcycles, alone or with a rider; all sizes in meters, frames drawn as tubes, engines as small boxes."""

import numpy as np

from synthdrive import paint
from synthdrive.canvas import Canvas
from synthdrive.model import Model, Place, circle
from synthdrive.people import Figure, rider_looks, riding_pose

BIKE_COLORS = (
    (200, 44, 40),
    (36, 96, 168),
    (30, 30, 34),
    (236, 236, 232),
    (44, 140, 92),
    (236, 170, 40),
    (120, 124, 130),
)
MOTOR_COLORS = (
    (196, 34, 32),
    (28, 28, 32),
    (34, 78, 160),
    (238, 238, 234),
    (230, 120, 30),
    (50, 120, 70),
    (150, 154, 160),
)


class Tubes:
    """Draws lines given in the vehicle's frame."""

    def __init__(self, canvas: Canvas, place: Place, ident: int) -> None:
        self.canvas, self.place, self.ident = canvas, place, ident

    def line(self, points, width: float, color, closed: bool = False) -> None:
        """A tube of this width through points (forward, right, up)."""
        shaded = self.canvas.daylight.shade(color, _TUBE_LIGHT)
        world = self.place.to_world(np.asarray(points, dtype=np.float64))
        self.canvas.stroke(world, width, shaded, self.ident, closed)

    def wheel(self, forward: float, radius: float, tire: float, spokes: int) -> None:
        """Tire, rim and spokes of a wheel that touches the ground."""
        rim = circle(forward, 0.0, radius, radius - tire / 2, 24)
        for spoke in range(spokes):
            start, end = rim[spoke * 24 // (2 * spokes)], rim[spoke * 24 // (2 * spokes) + 12]
            self.line([start, end], 0.008, (150, 152, 156))
        self.line(circle(forward, 0.0, radius, radius - tire * 1.1, 24), 0.018, (160, 162, 166), True)
        self.line(rim, tire, (24, 24, 26), True)

    def lamp(self, forward: float, up: float, size: float, color, lamp: tuple, faces: float) -> None:
        """A lamp that looks forward (faces = 1) or back (-1); hidden when it looks away from the camera."""
        center = self.place.to_world(np.array([[forward, 0.0, up]]))[0]
        looks_at = faces * np.array([np.sin(self.place.heading), np.cos(self.place.heading)])
        if center[[0, 2]] @ looks_at < 0.0:
            self.canvas.disc(center, size, self.canvas.daylight.shade(color, _TUBE_LIGHT), self.ident)
            corners = center + np.array([[-size, -size, 0.0], [size, size, 0.0]])
            self.canvas.lamp(corners, *lamp, self.ident)


_TUBE_LIGHT = np.array([0.0, 0.8, -0.6])


def draw_bike(canvas: Canvas, place: Place, rng: np.random.Generator, ident: int, rider: int | None = None) -> None:
    """A bike, with a rider of the id `rider` if one is given."""
    color = paint.pick(rng, BIKE_COLORS)
    figure = None
    if rider is not None:
        looks = rider_looks(rng, helmet_share=0.5)
        pose = riding_pose((-0.22, 0.94), (0.40, 0.24, 1.04), (-0.05, 0.29, 0.17), float(rng.uniform(0, 2 * np.pi)))
        figure = Figure(canvas, place, pose, looks, rider)
        figure.draw_far()
    _bike_frame(Tubes(canvas, place, ident), color, bool(rng.random() < 0.4))
    if figure is not None:
        figure.draw_near()


def _bike_frame(tubes: Tubes, color, basket: bool) -> None:
    rear, front, radius = -0.53, 0.55, 0.345
    crank, seat, head, steer = (-0.05, 0.0, 0.28), (-0.20, 0.0, 0.86), (0.36, 0.0, 0.86), (0.41, 0.0, 0.66)
    tubes.wheel(rear, radius, 0.05, 5)
    tubes.wheel(front, radius, 0.05, 5)
    hub = (rear, 0.0, radius)
    tubes.line([hub, crank, seat, hub], 0.036, paint.darker(color, 0.85))
    tubes.line([crank, steer, head, (-0.18, 0.0, 0.78)], 0.046, color)
    tubes.line([head, steer, (front, 0.0, radius)], 0.040, paint.darker(color, 0.8))
    tubes.line([seat, (-0.215, 0.0, 0.93)], 0.03, (130, 132, 135))
    tubes.line([(-0.34, 0.0, 0.94), (-0.08, 0.0, 0.95)], 0.075, (26, 24, 24))
    tubes.line([head, (0.38, 0.0, 1.02)], 0.032, (60, 60, 62))
    tubes.line([(0.34, -0.29, 1.02), (0.42, -0.14, 1.04), (0.42, 0.14, 1.04), (0.34, 0.29, 1.02)], 0.032, (40, 40, 42))
    tubes.line(circle(crank[0], 0.03, crank[2], 0.09, 12), 0.03, (70, 70, 72), True)
    tubes.line([(-0.16, 0.12, 0.2), (0.06, -0.12, 0.36)], 0.03, (50, 50, 52))
    if basket:
        corners = [
            (0.50, -0.16, 0.80),
            (0.50, 0.16, 0.80),
            (0.78, 0.18, 1.0),
            (0.78, -0.18, 1.0),
            (0.48, -0.18, 1.0),
            (0.48, 0.18, 1.0),
        ]
        tubes.line(corners, 0.03, (84, 74, 62), True)
    tubes.lamp(0.52, 0.88, 0.045, paint.HEADLAMP, ((1.0, 0.95, 0.85), 0.15, "head"), 1.0)
    tubes.lamp(-0.42, 0.76, 0.045, paint.TAIL, ((1.0, 0.08, 0.05), 0.10, "tail"), -1.0)


def draw_motor(canvas: Canvas, place: Place, rng: np.random.Generator, ident: int, rider: int | None = None) -> None:
    """A motorcycle or (one in three) a scooter, with a rider of the id `rider` if one is given."""
    color = paint.vary(rng, paint.pick(rng, MOTOR_COLORS), 6.0)
    scooter = bool(rng.random() < 0.33)
    figure = None
    if rider is not None:
        looks = rider_looks(rng, helmet_share=0.95)
        pedals = (0.18, 0.34, 0.0) if scooter else (-0.08, 0.36, 0.0)
        pose = riding_pose((-0.25, 0.74), (0.42, 0.31, 1.02), pedals, 0.0)
        figure = Figure(canvas, place, pose, looks, rider)
        figure.draw_far()
    tubes = Tubes(canvas, place, ident)
    _motor_wheels(tubes, scooter)
    body = _scooter_body(color) if scooter else _motor_body(color)
    body.draw(canvas, place, ident)
    _motor_trim(tubes, scooter)
    if figure is not None:
        figure.draw_near()


def _motor_wheels(tubes: Tubes, scooter: bool) -> None:
    radius = 0.24 if scooter else 0.32
    tubes.wheel(-0.66, radius, 0.15, 3)
    tubes.wheel(0.68, radius, 0.13, 3)
    if not scooter:
        tubes.line([(0.36, 0.12, 0.92), (0.68, 0.12, radius)], 0.05, (158, 160, 164))
        tubes.line([(0.36, -0.12, 0.92), (0.68, -0.12, radius)], 0.05, (158, 160, 164))
        tubes.line([(-0.1, 0.1, 0.42), (-0.66, 0.1, radius)], 0.06, (70, 72, 75))


def _motor_body(color) -> Model:
    """Engine, tank, seat, tail, and a small cowl."""
    model = Model()
    engine = model.box(-0.26, 0.30, -0.17, 0.17, 0.24, 0.58, (74, 76, 80))
    for side in ("left", "right"):
        engine[side].patch(0.15, 0.2, 0.85, 0.8, (122, 125, 130))
    model.box(-0.16, 0.36, -0.14, 0.14, 0.58, 0.88, color)
    model.box(-0.72, -0.14, -0.13, 0.13, 0.66, 0.78, (28, 27, 28))
    model.box(-0.80, -0.35, -0.10, 0.10, 0.55, 0.68, paint.darker(color, 0.9))
    model.box(0.36, 0.52, -0.16, 0.16, 0.76, 1.02, color)
    model.box(0.50, 0.86, -0.07, 0.07, 0.62, 0.68, color)
    return model


def _scooter_body(color) -> Model:
    """Leg shield, floor board and the round tail below a long seat."""
    model = Model()
    model.box(0.34, 0.46, -0.22, 0.22, 0.30, 0.92, color)
    model.box(-0.15, 0.40, -0.17, 0.17, 0.22, 0.32, paint.darker(color, 0.7))
    model.box(-0.82, -0.12, -0.18, 0.18, 0.34, 0.68, color)["rear"].patch(0.3, 0.1, 0.7, 0.4, paint.PLATE)
    model.box(-0.80, -0.10, -0.15, 0.15, 0.68, 0.78, (32, 30, 30))
    model.box(0.56, 0.84, -0.08, 0.08, 0.40, 0.50, color)
    return model


def _motor_trim(tubes: Tubes, scooter: bool) -> None:
    """Handlebar, mirrors, exhaust and lamps."""
    tubes.line([(0.36, -0.36, 1.03), (0.42, -0.12, 1.0), (0.42, 0.12, 1.0), (0.36, 0.36, 1.03)], 0.045, (36, 36, 38))
    for side in (-1, 1):
        tubes.line([(0.40, 0.24 * side, 1.02), (0.42, 0.34 * side, 1.17)], 0.025, (40, 40, 42))
        tubes.line([(0.42, 0.30 * side, 1.17), (0.42, 0.40 * side, 1.19)], 0.07, (52, 54, 58))
    if not scooter:
        tubes.line([(0.10, 0.18, 0.30), (-0.30, 0.19, 0.26), (-0.85, 0.20, 0.36)], 0.085, (168, 170, 172))
    tubes.lamp(0.54, 0.89 if not scooter else 0.84, 0.085, paint.HEADLAMP, ((1.0, 0.93, 0.8), 0.7, "head"), 1.0)
    tubes.lamp(-0.83, 0.64, 0.06, paint.TAIL, ((1.0, 0.08, 0.05), 0.2, "tail"), -1.0)
