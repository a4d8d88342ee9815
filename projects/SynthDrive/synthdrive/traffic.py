"""Road users of the seven classes, each placed where its kind is usually found."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from synthdrive.canvas import Canvas
from synthdrive.cars import build_car
from synthdrive.heavy import build_bus, build_truck
from synthdrive.model import Model, Place
from synthdrive.people import draw_pedestrian
from synthdrive.street import Street
from synthdrive.two_wheelers import draw_bike, draw_motor

CLASSES = ("bus", "bike", "car", "motor", "person", "rider", "truck")
BUS, BIKE, CAR, MOTOR, PERSON, RIDER, TRUCK = range(7)

MAX_OBJECTS = 12  # in an image, riders included

# Shares of the road users; "ridden" brings a rider as well.
_MIX = {
    "car": 0.41, "person": 0.28, "truck": 0.09, "bus": 0.07,
    "ridden bike": 0.065, "ridden motor": 0.055, "bike": 0.04, "motor": 0.03,
}  # fmt: skip
_HIGHWAY_MIX = {"car": 0.62, "truck": 0.20, "bus": 0.08, "ridden motor": 0.10}


@dataclass(frozen=True)
class Actor:
    """One placed road user: classes of its ids (vehicle, then rider), footprint in meters, and how to paint it."""

    labels: tuple[int, ...]
    place: Place
    length: float
    width: float
    height: float
    paint: Callable[[Canvas, tuple[int, ...]], None]

    def footprint(self, margin: float = 0.0) -> np.ndarray:
        """Corners (4, 3) on the ground."""
        half_l, half_w = self.length / 2 + margin, self.width / 2 + margin
        corners = np.array(
            [(-half_l, -half_w, 0.0), (-half_l, half_w, 0.0), (half_l, half_w, 0.0), (half_l, -half_w, 0.0)]
        )
        return self.place.to_world(corners)

    def bounds(self, margin: float = 0.0) -> np.ndarray:
        """Ground rectangle x0, z0, x1, z1 around the footprint."""
        corners = self.footprint(margin)[:, [0, 2]]
        return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def populate(street: Street, rng: np.random.Generator, count: int) -> list[Actor]:
    """About this many road users without collisions; fewer where the street is full."""
    mix = _HIGHWAY_MIX if street.kind == "highway" else _MIX
    kinds, shares = list(mix), np.array(list(mix.values()))
    actors: list[Actor] = []
    for kind in rng.choice(kinds, size=count, p=shares / shares.sum()):
        propose = _proposals(str(kind), street, rng)
        for _ in range(6):
            actor = propose()
            if actor is not None and _is_free(actor, actors):
                actors.append(actor)
                break
        if sum(len(actor.labels) for actor in actors) >= MAX_OBJECTS - 1:  # the next may bring a rider
            break
    return actors


def _is_free(actor: Actor, others: list[Actor]) -> bool:
    margin = 0.15 if actor.labels[0] == PERSON else 0.4
    x0, z0, x1, z1 = actor.bounds(margin)
    boxes = [other.bounds() for other in others]
    return z0 > 3.0 and not any(x0 < b[2] and x1 > b[0] and z0 < b[3] and z1 > b[1] for b in boxes)


def _proposals(kind: str, street: Street, rng: np.random.Generator) -> Callable[[], Actor | None]:
    """A function that proposes a road user of this kind at another place at each call; None for an impossible place."""
    if kind == "person":
        return lambda: _pedestrian(street, rng)
    if kind.endswith(("bike", "motor")):
        return lambda: _two_wheeler(kind, street, rng)
    build, label = {"car": (build_car, CAR), "bus": (build_bus, BUS), "truck": (build_truck, TRUCK)}[kind]
    model, length, width = build(rng)
    return lambda: _vehicle(label, model, length, width, _vehicle_place(kind, street, rng, length))


def _distance(rng: np.random.Generator, near: float, far: float) -> float:
    """Log-uniform: as many things per octave of distance, hence of size in the image."""
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _vehicle(label: int, model: Model, length: float, width: float, place: Place | None) -> Actor | None:
    if place is None:
        return None
    top = max(float(face.points[:, 2].max()) for face in model.faces)
    return Actor((label,), place, length, width, top, lambda canvas, idents: model.draw(canvas, place, idents[0]))


def _vehicle_place(kind: str, street: Street, rng: np.random.Generator, length: float) -> Place | None:
    """In a lane, parked, on the cross street, or turning."""
    near = 4.5 + length / 2 + (3.0 if kind != "car" else 0.0)
    far = 62.0 if kind == "car" else 75.0
    choice = rng.random()
    sway = float(rng.normal(0.0, 0.02))
    if street.crossing is not None and choice < 0.26:
        return _crossing_place(street, rng)
    if street.parking and kind != "bus" and choice < 0.48:
        side = 1 if rng.random() < 0.5 else -1
        lateral = (street.right_edge if side > 0 else -street.left_edge) - street.parking / 2
        s = _distance(rng, near, 45.0)
        if street.in_crossing(s - length / 2, s + length / 2, 5.0):
            return None
        return street.place(side * lateral, s, sway + (0.0 if side > 0 or rng.random() < 0.3 else np.pi))
    if choice < 0.74:
        lane = int(rng.integers(street.lanes_right))
        ahead = abs((lane + 0.5) * street.lane + street.center) < 1.5
        s = _distance(rng, near + (5.0 if ahead else 0.0) + (6.0 if ahead and kind != "car" else 0.0), far)
        return street.place((lane + 0.5) * street.lane + float(rng.normal(0, 0.15)), s, sway)
    lane = int(rng.integers(street.lanes_left))
    return street.place(
        -(lane + 0.5) * street.lane + float(rng.normal(0, 0.15)), _distance(rng, near, far), np.pi + sway
    )


def _crossing_place(street: Street, rng: np.random.Generator) -> Place:
    """On the cross street (seen from the side) or turning through it (seen at an angle)."""
    eastbound = rng.random() < 0.5
    share = 0.27 if eastbound else 0.73  # who drives to the right keeps to the near half
    s = street.crossing + share * street.crossing_width
    reach = 0.42 * s + 2.0
    heading = np.pi / 2 if eastbound else -np.pi / 2
    if rng.random() < 0.35:
        heading += float(rng.uniform(-1.1, 1.1))
        return street.place(float(rng.uniform(street.left_edge, street.right_edge)), s, heading)
    return street.place(float(rng.uniform(-reach, reach)) - street.center, s, heading + float(rng.normal(0, 0.05)))


def _pedestrian(street: Street, rng: np.random.Generator) -> Actor:
    """On a sidewalk, on the crossing, or at the roadside."""
    s = _distance(rng, 6.5, 36.0)
    along = float(rng.choice([0.0, np.pi])) + float(rng.normal(0.0, 0.35))
    if street.crossing is not None and rng.random() < 0.45:
        lateral = float(rng.uniform(street.left_edge - 1.0, street.right_edge + 1.0))
        heading = float(rng.choice([-1.0, 1.0])) * np.pi / 2 + float(rng.normal(0, 0.15))
        place = street.place(lateral, street.crossing - float(rng.uniform(1.6, 3.8)), heading)
    else:
        side = 1 if rng.random() < 0.55 else -1
        edge = street.right_edge if side > 0 else -street.left_edge
        place = street.place(side * (edge + 0.4 + float(rng.uniform(0.0, max(0.6, street.sidewalk - 0.6)))), s, along)
    seed = int(rng.integers(2**31))
    return Actor(
        (PERSON,),
        place,
        0.5,
        0.55,
        1.75,
        lambda canvas, idents: draw_pedestrian(canvas, place, np.random.default_rng(seed), idents[0]),
    )


def _two_wheeler(kind: str, street: Street, rng: np.random.Generator) -> Actor:
    """Ridden near the curb, in a lane or across the street; or parked on the sidewalk."""
    ridden, motor = kind.startswith("ridden"), kind.endswith("motor")
    place = _riding_place(street, rng, motor) if ridden else _parked_place(street, rng)
    seed, draw = int(rng.integers(2**31)), draw_motor if motor else draw_bike
    label = MOTOR if motor else BIKE
    labels = (label, RIDER) if ridden else (label,)
    size = (2.1, 0.75) if motor else (1.75, 0.6)
    return Actor(
        labels,
        place,
        *size,
        1.75 if ridden else 1.05,
        lambda canvas, idents: draw(canvas, place, np.random.default_rng(seed), *idents),
    )


def _riding_place(street: Street, rng: np.random.Generator, motor: bool) -> Place:
    s = _distance(rng, 6.5, 34.0)
    sway = float(rng.normal(0.0, 0.12))
    if street.crossing is not None and rng.random() < 0.5:
        return _crossing_place(street, rng)
    if rng.random() < 0.6:
        lateral = street.right_edge - street.parking - float(rng.uniform(0.6, 1.2))
        lateral = (
            (int(rng.integers(street.lanes_right)) + 0.5) * street.lane if motor and rng.random() < 0.7 else lateral
        )
        return street.place(lateral, s, sway)
    lateral = (
        -(int(rng.integers(street.lanes_left)) + 0.5) * street.lane
        if motor
        else street.left_edge + street.parking + 0.9
    )
    return street.place(lateral, s, np.pi + sway)


def _parked_place(street: Street, rng: np.random.Generator) -> Place:
    side = 1 if rng.random() < 0.6 else -1
    edge = street.right_edge if side > 0 else -street.left_edge
    heading = float(rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2, 0.8, -0.8, 2.2, -2.2])) + float(rng.normal(0, 0.2))
    return street.place(
        side * (edge + float(rng.uniform(0.6, max(1.0, street.sidewalk - 0.7)))), _distance(rng, 6.0, 24.0), heading
    )
