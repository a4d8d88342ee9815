"""Buses and trucks: tall boxes with window rows, or a cab in front of a cargo box, a trailer or a dump body."""

import numpy as np

from synthdrive import paint
from synthdrive.cars import add_wheel
from synthdrive.model import Face, Model

BUS_COLORS = (
    (206, 44, 40),
    (238, 238, 234),
    (34, 82, 150),
    (222, 172, 38),
    (40, 122, 84),
    (232, 120, 40),
    (226, 228, 230),
    (98, 154, 200),
)
CARGO_COLORS = (
    (236, 236, 232),
    (240, 240, 238),
    (214, 210, 200),
    (40, 84, 148),
    (176, 48, 42),
    (226, 184, 60),
    (56, 118, 84),
    (128, 132, 136),
)
CAB_COLORS = (
    (232, 232, 230),
    (176, 36, 36),
    (36, 72, 136),
    (220, 160, 40),
    (62, 66, 72),
    (46, 110, 84),
    (228, 226, 220),
)


def build_bus(rng: np.random.Generator) -> tuple[Model, float, float]:
    """A city bus, one in six a double decker; with its length and width in meters."""
    length, width = float(rng.uniform(9.0, 12.5)), 2.5
    double = rng.random() < 0.16
    height = 4.2 if double else float(rng.uniform(2.95, 3.25))
    color = paint.vary(rng, paint.pick(rng, BUS_COLORS), 6.0)
    stripe = paint.vary(rng, paint.pick(rng, BUS_COLORS), 6.0)
    decks = [(0.30, 0.475), (0.60, 0.84)] if double else [(0.40, 0.80)]
    model = Model()
    _chassis(model, length, width)
    body = _chamfered_box(model, -length / 2, length / 2, width / 2, 0.32, height, color, 0.22)
    for side in ("left", "right"):
        _bus_side(body[side], length, decks, stripe, side == "right")
    _bus_front(body["front"], double)
    _bus_rear(body["rear"], color, double)
    model.box(-length * 0.3, length * 0.1, -0.8, 0.8, height, height + 0.22, paint.darker(color, 0.85))
    for left in (-width / 2 - 0.28, width / 2 + 0.02):
        model.box(length / 2 + 0.02, length / 2 + 0.14, left, left + 0.24, height * 0.5, height * 0.5 + 0.5, paint.DARK)
    return model, length, width


def _chassis(model: Model, length: float, width: float) -> None:
    half = width / 2
    model.box(-length / 2 + 0.2, length / 2 - 0.2, -half + 0.3, half - 0.3, 0.2, 0.6, (18, 18, 20))
    for axle in (-length * 0.28, length / 2 - 2.3):
        for left in (-half + 0.06, half - 0.42):
            model.box(axle - 0.4, axle + 0.4, left, left + 0.36, 0.0, 0.7, paint.TIRE)


def _chamfered_box(
    model: Model, rear: float, front: float, half: float, low: float, high: float, color, cut: float
) -> dict[str, Face]:
    """A box whose upright edges are cut, by face names as Model.box has them."""
    inside = ((rear + front) / 2, 0.0, (low + high) / 2)
    nose = half - cut

    def wall(a, b):
        return model.face([(*a, low), (*b, low), (*b, high), (*a, high)], color, inside)

    faces = {
        "rear": wall((rear, -nose), (rear, nose)),
        "right": wall((rear + cut, half), (front - cut, half)),
        "front": wall((front, nose), (front, -nose)),
        "left": wall((front - cut, -half), (rear + cut, -half)),
    }
    for a, b in (((rear, nose), (rear + cut, half)), ((front - cut, half), (front, nose)),
                 ((front, -nose), (front - cut, -half)), ((rear + cut, -half), (rear, -nose))):  # fmt: skip
        wall(a, b)
    model.face([(rear, -nose, high), (rear, nose, high), (front, nose, high), (front, -nose, high)], color, inside)
    return faces


def _bus_side(face: Face, length: float, decks, stripe, doors: bool) -> None:
    """Rows of windows, a livery stripe, and doors on the curb side."""
    count = max(5, round(length / 1.45))
    face.patch(0.0, 0.0, 1.0, 0.05, paint.DARK)
    face.patch(0.0, 0.22, 1.0, 0.29, stripe)
    for bottom, top in decks:
        face.patch(0.015, bottom, 0.985, top, (34, 38, 43))
        for index in range(count):
            left, right = 0.02 + 0.96 * index / count + 0.006, 0.02 + 0.96 * (index + 1) / count - 0.006
            face.patch(left, bottom + 0.02, right, top - 0.02, (66, 80, 92), emission=paint.CABIN_GLOW)
            face.patch(left, (bottom + top) / 2 + 0.06, right, top - 0.02, (98, 116, 130), emission=paint.CABIN_GLOW)
    for left in (0.86, 0.46) if doors else ():
        face.patch(left, 0.06, left + 0.10, 0.78, (30, 33, 37))
        face.patch(left + 0.008, 0.10, left + 0.046, 0.75, (86, 102, 114))
        face.patch(left + 0.054, 0.10, left + 0.092, 0.75, (86, 102, 114))
    right = face.points[0][1]
    for axle in (-length * 0.28, length / 2 - 2.3):
        add_wheel(face, axle, right, 0.47)


def _bus_front(face: Face, double: bool) -> None:
    bottom, top = (0.20, 0.47) if double else (0.30, 0.80)
    face.patch(0.0, 0.0, 1.0, 0.08, paint.DARK)
    face.patch(0.02, bottom, 0.98, top, (44, 52, 60)).patch(0.04, (bottom + top) / 2, 0.96, top - 0.01, (88, 104, 118))
    face.patch(0.495, bottom, 0.505, top, (30, 32, 34))
    face.patch(0.60, bottom, 0.84, bottom + 0.14, (34, 36, 40))
    if double:
        face.patch(0.02, 0.62, 0.98, 0.88, (52, 60, 68)).patch(0.04, 0.75, 0.96, 0.87, (92, 108, 122))
    sign = (0.49, 0.57) if double else (0.84, 0.95)
    face.patch(0.10, sign[0], 0.90, sign[1], (22, 22, 22))
    for left in (0.16, 0.34, 0.44, 0.58, 0.70):
        face.patch(left, sign[0] + 0.025, left + 0.09, sign[1] - 0.025, (240, 160, 40), emission=paint.SIGN_GLOW)
    for left in (0.03, 0.81):
        face.patch(left, 0.10, left + 0.16, 0.18, paint.HEADLAMP, paint.HEAD_LIGHT)
    face.patch(0.40, 0.09, 0.60, 0.15, paint.PLATE)


def _bus_rear(face: Face, color, double: bool) -> None:
    bottom, top = (0.60, 0.84) if double else (0.55, 0.82)
    face.patch(0.0, 0.0, 1.0, 0.08, paint.DARK)
    face.patch(0.12, bottom, 0.88, top, (46, 54, 62)).patch(0.14, (bottom + top) / 2, 0.86, top - 0.01, (84, 100, 112))
    face.patch(0.18, 0.16, 0.82, 0.42, paint.darker(color, 0.72))
    for bar in range(5):
        face.patch(0.20, 0.18 + 0.046 * bar, 0.80, 0.20 + 0.046 * bar, paint.darker(color, 0.45))
    face.patch(0.66, 0.85, 0.88, 0.94, (22, 22, 22)).patch(
        0.70, 0.87, 0.84, 0.92, (240, 160, 40), emission=paint.SIGN_GLOW
    )
    for left in (0.02, 0.88):
        face.patch(left, 0.20, left + 0.10, 0.34, paint.TAIL, paint.TAIL_LIGHT)
        face.patch(left, 0.36, left + 0.10, 0.42, paint.AMBER)
    face.patch(0.40, 0.09, 0.60, 0.14, paint.PLATE)


def build_truck(rng: np.random.Generator) -> tuple[Model, float, float]:
    """A box truck, a tractor with a trailer, or a dump truck; with its length and width in meters."""
    kind = rng.choice(["box", "box", "trailer", "dump"])
    length = {"box": rng.uniform(6.2, 8.5), "trailer": rng.uniform(11.5, 14.5), "dump": rng.uniform(6.5, 8.0)}[
        str(kind)
    ]
    length, width = float(length), 2.2 if kind == "box" and length < 7.0 else 2.5
    cab_color = paint.vary(rng, paint.pick(rng, CAB_COLORS), 6.0)
    cab_length = 1.9 if kind == "box" else 2.2
    cab_height = 2.3 if width < 2.4 else float(rng.uniform(2.6, 3.0))
    model = Model()
    _truck_chassis(model, length, width)
    back = length / 2 - cab_length - 0.25
    if kind == "dump":
        _dump_body(model, rng, -length / 2, back, width)
    else:
        _cargo_box(model, rng, -length / 2, back, width, float(rng.uniform(3.0, 3.9)) if width > 2.4 else 2.9)
    _cab(model, length / 2 - cab_length, length / 2, width - 0.1, cab_height, cab_color)
    return model, length, width


def _truck_chassis(model: Model, length: float, width: float) -> None:
    half = width / 2
    model.box(-length / 2 + 0.05, length / 2 - 0.3, -0.5, 0.5, 0.45, 0.95, (30, 30, 32))
    axles = [-length / 2 + 1.2, length / 2 - 1.25] + ([-length / 2 + 2.4, length / 2 - 4.2] if length > 10.0 else [])
    for axle in axles:
        for left in (-half + 0.02, half - 0.46):
            tire = model.box(axle - 0.46, axle + 0.46, left, left + 0.44, 0.0, 0.92, paint.TIRE)
            name, right = ("left", left) if left < 0 else ("right", left + 0.44)
            tire[name].points = _wheel_face(axle, right)
            add_wheel(tire[name], axle, right, 0.48)
    bumper = model.box(-length / 2, -length / 2 + 0.1, -half + 0.1, half - 0.1, 0.45, 0.62, (52, 52, 54))["rear"]
    for left in (0.0, 0.25, 0.5, 0.75):
        bumper.patch(left, 0.15, left + 0.125, 0.85, (196, 40, 36))
    for right in (-half + 0.12, half - 0.42):
        lamp = model.box(-length / 2 - 0.02, -length / 2 + 0.08, right, right + 0.3, 0.70, 0.90, (60, 20, 20))["rear"]
        lamp.patch(0.05, 0.1, 0.95, 0.9, paint.TAIL, paint.TAIL_LIGHT)
    model.box(-length / 2 + 2.0, length / 2 - 2.4, -half + 0.12, half - 0.12, 0.5, 0.8, (70, 72, 75))


def _wheel_face(axle: float, right: float) -> np.ndarray:
    low, high = 0.02, 0.94
    return np.array(
        [(axle - 0.3, right, low), (axle + 0.3, right, low), (axle + 0.3, right, high), (axle - 0.3, right, high)]
    )


def _cargo_box(model: Model, rng: np.random.Generator, rear: float, front: float, width: float, height: float) -> None:
    """Closed body with doors behind and, often, a company's stripe or panel."""
    half, low = width / 2, 0.95
    color = paint.vary(rng, paint.pick(rng, CARGO_COLORS), 5.0)
    accent = paint.vary(rng, paint.pick(rng, BUS_COLORS), 8.0)
    box = model.box(rear, front, -half, half, low, height, color)
    style = rng.integers(3)
    for side in ("left", "right"):
        face = box[side]
        if style == 1:
            face.patch(0.0, 0.12, 1.0, 0.34, accent)
        if style == 2:
            face.patch(0.2, 0.38, 0.8, 0.72, accent).patch(0.26, 0.46, 0.74, 0.52, (240, 240, 240)).patch(
                0.32, 0.58, 0.66, 0.64, (240, 240, 240)
            )
        for rib in np.arange(0.0, 1.0, 0.9 / max(4.0, (front - rear))):
            face.patch(rib, 0.0, rib + 0.006, 1.0, paint.darker(color, 0.82))
        face.patch(0.0, 0.0, 1.0, 0.03, paint.darker(color, 0.5)).patch(0.0, 0.97, 1.0, 1.0, paint.darker(color, 0.7))
    _cargo_doors(box["rear"], color)


def _cargo_doors(face: Face, color) -> None:
    frame = paint.darker(color, 0.62)
    for left, right in ((0.0, 0.035), (0.488, 0.512), (0.965, 1.0)):
        face.patch(left, 0.0, right, 1.0, frame)
    face.patch(0.0, 0.96, 1.0, 1.0, frame).patch(0.0, 0.0, 1.0, 0.04, frame)
    for bar in (0.30, 0.40, 0.60, 0.70):
        face.patch(bar, 0.04, bar + 0.018, 0.96, (150, 152, 154))
        face.patch(bar - 0.02, 0.38, bar + 0.05, 0.41, (90, 92, 95))
    for left in (0.02, 0.93):
        face.patch(left, 0.90, left + 0.05, 0.94, paint.TAIL)
    for left in (0.04, 0.28, 0.56, 0.8):
        face.patch(left, 0.05, left + 0.10, 0.075, (206, 44, 38))


def _dump_body(model: Model, rng: np.random.Generator, rear: float, front: float, width: float) -> None:
    """Open steel body with ribs, heaped with earth."""
    half, low, high = width / 2, 0.95, float(rng.uniform(1.9, 2.4))
    color = paint.vary(rng, ((206, 132, 36), (150, 60, 40), (92, 98, 104), (60, 100, 80))[int(rng.integers(4))], 6.0)
    box = model.box(rear, front, -half, half, low, high, color)
    for side in ("left", "right"):
        for rib in np.linspace(0.02, 0.96, 7):
            box[side].patch(rib, 0.0, rib + 0.03, 1.0, paint.darker(color, 0.7))
        box[side].patch(0.0, 0.88, 1.0, 1.0, paint.darker(color, 0.8))
    for rib in (0.0, 0.3, 0.66, 0.95):
        box["rear"].patch(rib, 0.0, rib + 0.05, 1.0, paint.darker(color, 0.7))
    earth = paint.vary(rng, (122, 98, 74), 10.0)
    peak = ((rear + front) / 2, 0.0, high + float(rng.uniform(0.35, 0.7)))
    corners = [
        (rear + 0.3, -half + 0.1, high),
        (rear + 0.3, half - 0.1, high),
        (front - 0.3, half - 0.1, high),
        (front - 0.3, -half + 0.1, high),
    ]
    for a, b in zip(corners, corners[1:] + corners[:1]):
        model.face([a, b, peak], earth, (peak[0], 0.0, high - 0.5))


def _cab(model: Model, rear: float, front: float, width: float, height: float, color) -> None:
    """Forward-control cab: upright windshield, grille, lamps, side windows, mirrors."""
    half, low = width / 2, 0.42
    faces = _chamfered_box(model, rear, front, half, low, height, color, 0.14)
    face = faces["front"]
    face.patch(0.0, 0.0, 1.0, 0.14, paint.DARK)
    face.patch(0.04, 0.52, 0.96, 0.88, (44, 52, 60)).patch(0.06, 0.70, 0.94, 0.87, (90, 106, 120))
    face.patch(0.14, 0.20, 0.86, 0.46, (40, 42, 45))
    for bar in (0.24, 0.31, 0.38):
        face.patch(0.16, bar, 0.84, bar + 0.025, (120, 123, 127))
    for left in (0.01, 0.83):
        face.patch(left, 0.14, left + 0.16, 0.24, paint.HEADLAMP, paint.HEAD_LIGHT)
    face.patch(0.38, 0.04, 0.62, 0.11, paint.PLATE)
    for left in (0.1, 0.46, 0.82):
        face.patch(left, 0.93, left + 0.08, 0.965, paint.AMBER, emission=paint.SIGN_GLOW)
    for side in ("left", "right"):
        window = (0.30, 0.88) if side == "right" else (0.12, 0.70)
        faces[side].patch(window[0], 0.52, window[1], 0.86, paint.GLASS).patch(
            window[0], 0.70, window[1], 0.86, (78, 92, 104)
        )
        faces[side].patch(0.1, 0.14, 0.12, 0.9, paint.darker(color, 0.6))
    for left in (-half - 0.30, half + 0.08):
        model.box(front - 0.1, front + 0.05, left, left + 0.22, height * 0.55, height * 0.55 + 0.55, paint.DARK)
