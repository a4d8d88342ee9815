"""People as jointed figures: walking or standing pedestrians, and riders sitting on a bike or a motorcycle."""

from dataclasses import dataclass, replace

import numpy as np

from synthdrive import paint
from synthdrive.canvas import Canvas
from synthdrive.model import Place

_SIDES = {"left": -1.0, "right": 1.0}


@dataclass(frozen=True)
class Looks:
    """Colors and build of one person; height in meters."""

    height: float
    top: tuple
    bottom: tuple
    skin: tuple
    hair: tuple
    shoes: tuple
    coat: bool = False
    skirt: bool = False
    bare_arms: bool = False
    long_hair: bool = False
    backpack: tuple | None = None
    bag: tuple | None = None
    helmet: tuple | None = None


def random_looks(rng: np.random.Generator) -> Looks:
    """A random pedestrian."""
    child = rng.random() < 0.1
    return Looks(
        height=float(rng.uniform(1.15, 1.4) if child else np.clip(rng.normal(1.72, 0.08), 1.5, 1.95)),
        top=paint.vary(rng, paint.pick(rng, paint.CLOTHES)),
        bottom=paint.vary(rng, paint.pick(rng, paint.TROUSERS), 6.0),
        skin=paint.pick(rng, paint.SKIN),
        hair=paint.pick(rng, paint.HAIR),
        shoes=paint.pick(rng, ((30, 28, 28), (70, 50, 38), (214, 212, 208))),
        coat=bool(rng.random() < 0.25),
        skirt=bool(rng.random() < 0.12),
        bare_arms=bool(rng.random() < 0.35),
        long_hair=bool(rng.random() < 0.4),
        backpack=paint.pick(rng, paint.CLOTHES) if rng.random() < 0.25 else None,
        bag=paint.pick(rng, paint.CLOTHES) if rng.random() < 0.25 else None,
    )


def rider_looks(rng: np.random.Generator, helmet_share: float) -> Looks:
    """A random adult in trousers with free hands; `helmet_share` is the probability of a helmet."""
    looks = random_looks(rng)
    helmet = paint.vary(rng, paint.pick(rng, paint.CAR_COLORS)) if rng.random() < helmet_share else None
    return replace(looks, height=max(1.6, looks.height), coat=False, skirt=False, bag=None, helmet=helmet)


def walking_pose(rng: np.random.Generator, height: float) -> dict[str, np.ndarray]:
    """Joints (forward, right, up) in meters of a person who walks (or, one in four, stands)."""
    stride = 0.0 if rng.random() < 0.25 else float(rng.uniform(0.55, 1.0))
    phase = float(rng.uniform(0, 2 * np.pi))
    joints = {
        "hip": np.array([0.0, 0.0, 0.93]),
        "chest": np.array([0.03, 0.0, 1.38]),
        "head": np.array([0.05, 0.0, 1.61]),
    }
    for name, side in _SIDES.items():
        swing = np.sin(phase + (0.0 if side > 0 else np.pi)) * stride
        lift = max(0.0, np.cos(phase + (0.0 if side > 0 else np.pi))) * stride
        joints[f"{name}_foot"] = np.array([0.36 * swing, 0.09 * side + 0.02 * side, 0.06 + 0.12 * lift])
        joints[f"{name}_hand"] = np.array([-0.30 * swing + 0.08, 0.24 * side, 0.86 + 0.06 * abs(swing)])
    return {name: joint * (height / 1.75) for name, joint in joints.items()}


def riding_pose(
    seat: tuple[float, float], grips: tuple[float, float, float], pedals: tuple[float, float, float], phase: float
) -> dict[str, np.ndarray]:
    """Joints of somebody who sits on (forward, up) and holds grips at (forward, half width, up), in meters.

    `pedals` is (forward, up, crank length): feet turn with `phase`, or rest where the crank length is 0.
    """
    lean = 0.45 * (grips[0] - seat[0])
    joints = {
        "hip": np.array([seat[0], 0.0, seat[1] + 0.08]),
        "chest": np.array([seat[0] + lean * 0.85, 0.0, seat[1] + 0.55]),
        "head": np.array([seat[0] + lean + 0.05, 0.0, seat[1] + 0.80]),
    }
    for name, side in _SIDES.items():
        turn = phase if side > 0 else phase + np.pi
        foot = (pedals[0] + pedals[2] * np.cos(turn), 0.13 * side, pedals[1] + pedals[2] * np.sin(turn))
        joints[f"{name}_foot"] = np.array(foot)
        joints[f"{name}_hand"] = np.array([grips[0], grips[1] * side, grips[2]])
    return joints


def bend(start: np.ndarray, end: np.ndarray, first: float, second: float, towards: np.ndarray) -> np.ndarray:
    """Knee or elbow between two joints (3,): bones of these lengths, bent `towards` a direction (3,)."""
    along = end - start
    distance = float(np.linalg.norm(along))
    along = along / max(distance, 1e-6)
    distance = min(distance, (first + second) * 0.999)
    reach = (first**2 - second**2 + distance**2) / (2 * max(distance, 1e-6))
    offset = np.sqrt(max(0.0, first**2 - reach**2))
    side = towards - along * float(towards @ along)
    return start + along * reach + side / max(1e-6, float(np.linalg.norm(side))) * offset


class Figure:
    """One person at a place: joints in the world, drawn limb by limb, far limbs first."""

    def __init__(self, canvas: Canvas, place: Place, pose: dict[str, np.ndarray], looks: Looks, ident: int) -> None:
        self.canvas, self.looks, self.ident = canvas, looks, ident
        self.size = looks.height / 1.75
        self.place = place
        self.pose = pose
        camera = np.array([-place.x, -place.z])
        forward = np.array([np.sin(place.heading), np.cos(place.heading)])
        right = np.array([np.cos(place.heading), -np.sin(place.heading)])
        self.near_side = "right" if camera @ right > 0 else "left"
        self.far_side = "left" if self.near_side == "right" else "right"
        self.facing = float(camera @ forward) / max(1e-6, float(np.linalg.norm(camera)))

    def draw(self) -> None:
        """Paint the whole person."""
        self.draw_far()
        self.draw_near()

    def draw_far(self) -> None:
        """The leg and arm away from the camera, which a vehicle between the legs covers."""
        self._arm(self.far_side)
        self._leg(self.far_side)

    def draw_near(self) -> None:
        """Everything else, from the body to the near arm."""
        if self.looks.backpack and self.facing > 0:
            self._backpack()
        hip = self.pose["hip"]
        self._limb(
            hip + np.array([0.0, -0.05 * self.size, 0.02]),
            hip + np.array([0.0, 0.05 * self.size, 0.02]),
            0.125,
            0.125,
            self.looks.bottom,
            0.9,
        )
        self._leg(self.near_side)
        self._torso()
        self._head()
        if self.looks.backpack and self.facing <= 0:
            self._backpack()
        self._arm(self.near_side)
        if self.looks.bag:
            self._bag()

    def _world(self, *points: np.ndarray) -> np.ndarray:
        return self.place.to_world(np.stack(points))

    def _limb(self, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color, light: float = 1.0) -> None:
        start, end = self._world(a, b)
        shaded = self.canvas.daylight.shade(paint.darker(color, light), _UP_LIGHT)
        self.canvas.limb(start, end, ra * self.size, rb * self.size, shaded, self.ident)

    def _leg(self, side: str) -> None:
        looks, light = self.looks, 1.0 if side == self.near_side else 0.72
        hip = self.pose["hip"] + np.array([0.0, 0.09 * _SIDES[side] * self.size, 0.0])
        foot = self.pose[f"{side}_foot"]
        knee = bend(hip, foot, 0.45 * self.size, 0.44 * self.size, np.array([1.0, 0.05 * _SIDES[side], 0.1]))
        shin = looks.skin if looks.skirt else looks.bottom
        self._limb(hip, knee, 0.095, 0.07, looks.skin if looks.skirt else looks.bottom, light)
        self._limb(knee, foot, 0.066, 0.048, shin, light * 0.97)
        toe = foot + np.array([0.16 * self.size, 0.0, -0.015])
        self._limb(foot + np.array([-0.03, 0.0, -0.01]), toe, 0.052, 0.04, looks.shoes, light)

    def _arm(self, side: str) -> None:
        looks, light = self.looks, 1.02 if side == self.near_side else 0.7
        shoulder = self.pose["chest"] + np.array([0.0, 0.19 * _SIDES[side] * self.size, 0.03 * self.size])
        hand = self.pose[f"{side}_hand"]
        elbow = bend(shoulder, hand, 0.31 * self.size, 0.29 * self.size, np.array([-0.6, 0.35 * _SIDES[side], -0.5]))
        self._limb(shoulder, elbow, 0.066, 0.052, looks.top, light * 0.93)
        self._limb(elbow, hand, 0.048, 0.038, looks.skin if looks.bare_arms else looks.top, light * 0.96)
        self._limb(hand, hand + np.array([0.02, 0.0, -0.03]), 0.042, 0.038, looks.skin, light)

    def _torso(self) -> None:
        looks, hip, chest = self.looks, self.pose["hip"], self.pose["chest"]
        down = (hip - chest) / max(1e-6, float(np.linalg.norm(hip - chest)))
        for side in _SIDES.values():
            wide = np.array([0.0, 0.10 * side * self.size, 0.0])
            self._limb(
                chest + wide,
                hip + wide * 0.75 - down * 0.02,
                0.105,
                0.085,
                looks.top,
                1.0 if side == _SIDES[self.near_side] else 0.94,
            )
        self._limb(chest, hip - down * 0.04, 0.13, 0.105, looks.top)
        if looks.skirt or looks.coat:
            hem = hip + np.array([0.02, 0.0, (-0.42 if looks.coat else -0.34) * self.size])
            self._limb(hip, hem, 0.15, 0.19, looks.top if looks.coat else looks.bottom, 0.95)

    def _head(self) -> None:
        looks, head = self.looks, self.pose["head"]
        self._limb(self.pose["chest"] + np.array([0.0, 0.0, 0.08]), head, 0.055, 0.05, looks.skin, 0.85)
        ahead = np.array([0.045, 0.0, -0.015]) * self.size
        if looks.long_hair and not looks.helmet:
            self._limb(head, head + np.array([-0.06, 0.0, -0.2 * self.size]), 0.115, 0.085, looks.hair)
        back, front = (looks.hair, looks.skin)
        if self.facing > -0.35:
            self._ball(head + np.array([-0.02, 0.0, 0.025]), 0.118, back)
            self._ball(head + ahead, 0.095, front)
            self._ball(head + np.array([0.01, 0.0, 0.085]), 0.085, back)
        else:
            self._ball(head, 0.112, front)
            self._ball(head + np.array([-0.02, 0.0, 0.025]), 0.118, back)
        if looks.helmet:
            self._ball(head + np.array([-0.01, 0.0, 0.055]), 0.14, looks.helmet)
            if self.facing > -0.35:
                self._ball(head + ahead * 1.6 + np.array([0.0, 0.0, -0.035]), 0.085, looks.skin)

    def _ball(self, center: np.ndarray, radius: float, color) -> None:
        shaded = self.canvas.daylight.shade(color, _UP_LIGHT)
        self.canvas.disc(self._world(center)[0], radius * self.size, shaded, self.ident, squash=1.12)

    def _backpack(self) -> None:
        middle = (self.pose["chest"] + self.pose["hip"]) / 2 + np.array([-0.17, 0.0, 0.06]) * self.size
        self._limb(
            middle + np.array([0.0, 0.0, 0.12]),
            middle - np.array([0.0, 0.0, 0.12]),
            0.15,
            0.17,
            self.looks.backpack,
            0.9,
        )

    def _bag(self) -> None:
        hand = self.pose[f"{self.near_side}_hand"] + np.array([0.0, 0.0, -0.22 * self.size])
        self._limb(hand + np.array([0.08, 0.0, 0.0]), hand - np.array([0.08, 0.0, 0.0]), 0.12, 0.12, self.looks.bag)


_UP_LIGHT = np.array([0.0, 0.6, -0.8])  # round limbs catch light from above and from the camera's side


def draw_pedestrian(canvas: Canvas, place: Place, rng: np.random.Generator, ident: int) -> None:
    """A random pedestrian at this place."""
    looks = random_looks(rng)
    Figure(canvas, place, walking_pose(rng, looks.height), looks, ident).draw()
