"""One driving scene: image, depth, boxes, lights and road, as a pure function of the seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthdrive import finish
from synthdrive.camera import Camera
from synthdrive.canvas import ROAD, SUPERSAMPLING, Canvas, Daylight, Light
from synthdrive.ordering import painting_order
from synthdrive.sky import paint_sky, paint_skyline
from synthdrive.street import RoadPainter, Street, random_street
from synthdrive.surroundings import Surroundings, Thing
from synthdrive.traffic import Actor, populate

MIN_OBJECTS = 3
MIN_VISIBLE = 0.25  # visible share of a road user's pixels and of its box, the least that is annotated
MIN_SIZE = (4.0, 7.0)  # width and height in pixels at 270 rows


@dataclass(frozen=True)
class Scene:
    """A rendered scene on a clear day, with its ground truth.

    image is (H, W, 3) uint8 RGB; depth (H, W) float32 meters along the optical axis, inf for the sky; boxes (M, 4) XYXY
    in float pixels around what is visible; labels (M,) indices into CLASSES; road (H, W) bool; emission (H, W, 3)
    float32 is the linear radiance of lit windows at night.
    """

    image: np.ndarray
    depth: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    lights: list[Light]
    road: np.ndarray
    emission: np.ndarray


def render_scene(seed: int | Sequence[int], height: int = 270, width: int = 480, sun: bool = True) -> Scene:
    """Render the daytime scene of this seed. Streets with fewer than three objects are drawn again.

    Without `sun` the same scene lies under closed clouds and has no shadows. Rain, fog and night start from that light.
    """
    return _busy_scene(seed, height, width, sun)[0]


def render_departures(
    seed: int | Sequence[int], height: int = 270, width: int = 480, sun: bool = True
) -> tuple[Scene, np.ndarray, np.ndarray]:
    """The scene of `render_scene`, then two (H, W, 3) uint8 RGB: without every other road user, and without any."""
    scene, entropy = _busy_scene(seed, height, width, sun)
    stayed = (slice(None, None, 2), slice(0))
    fewer, none = (_render(np.random.default_rng(entropy), height, width, sun, who).image for who in stayed)
    return scene, fewer, none


def _busy_scene(seed: int | Sequence[int], height: int, width: int, sun: bool) -> tuple[Scene, list[int]]:
    """The scene, and the seed of its random numbers."""
    if height < 64 or width < 64:
        raise ValueError(f"A scene needs at least 64 x 64 pixels, not {width} x {height}: choose a larger size.")
    base = [seed] if isinstance(seed, int) else list(seed)
    for attempt in range(8):
        entropy = [*base, attempt]
        scene = _render(np.random.default_rng(entropy), height, width, sun)
        if len(scene.labels) >= MIN_OBJECTS:
            break
    return scene, entropy


def _render(rng: np.random.Generator, height: int, width: int, sun: bool, who: slice = slice(None)) -> Scene:
    street = random_street(rng)
    actors = populate(street, rng, int(rng.integers(5, 12)))[who]
    things = Surroundings(street, rng).build()
    canvas = Canvas(_random_camera(rng, height, width), _random_daylight(rng, sun))
    _paint_background(canvas, street, rng)
    idents, painted = _paint_things(canvas, actors, things)
    boxes, labels = _annotate(canvas, actors, idents, painted)
    depth = canvas.depth()
    image = finish.finish(canvas, depth, actors, things, rng)
    return Scene(image, depth, boxes, labels, canvas.visible_lights(), canvas.ids() == ROAD, canvas.emission())


def _random_camera(rng: np.random.Generator, height: int, width: int) -> Camera:
    return Camera(
        focal=width * float(rng.uniform(0.82, 1.15)),
        center_x=width * (0.5 + float(rng.normal(0.0, 0.03))),
        horizon=height * float(np.clip(rng.normal(0.46, 0.04), 0.36, 0.56)),
        height=float(rng.uniform(1.25, 2.0)),
        image_height=height,
        image_width=width,
    )


def _random_daylight(rng: np.random.Generator, sun: bool) -> Daylight:
    """Sun at 20 to 65 degrees; one day in four is overcast; warm or cool white."""
    azimuth, elevation = float(rng.uniform(-np.pi, np.pi)), float(rng.uniform(0.35, 1.15))
    cloudy, veiled, bright = rng.random() < 0.25, float(rng.uniform(0.02, 0.10)), float(rng.uniform(0.30, 0.50))
    warmth, ambient = float(rng.normal(0.0, 0.025)), float(rng.uniform(0.74, 0.86))
    strength = (veiled if cloudy else bright) if sun else 0.0
    direction = (np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth))
    return Daylight(tuple(map(float, direction)), strength, ambient, (1.0 + warmth, 1.0, 1.0 - warmth))


def _paint_background(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    overcast = canvas.daylight.strength < 0.2
    dense, loose = float(rng.uniform(0.75, 1.0)), float(rng.uniform(0.0, 0.7))
    blue = tuple(float(rng.uniform(*limits)) for limits in ((70, 112), (132, 164), (204, 226)))
    pale = tuple(float(rng.uniform(*limits)) for limits in ((196, 222), (212, 226), (224, 238)))
    clouds = dense if overcast else loose
    zenith, horizon = ((150, 168, 190), (208, 214, 220)) if overcast else (blue, pale)
    paint_sky(canvas, rng, clouds, zenith, horizon)
    paint_skyline(canvas, rng, street.kind)
    RoadPainter(canvas, street, rng).paint()


def _paint_things(
    canvas: Canvas, actors: list[Actor], things: list[Thing]
) -> tuple[list[tuple[int, ...]], dict[int, int]]:
    """Paint everything, far to near. Returns the ids of each actor, and the pixels of each id when it was painted."""
    bounds = np.stack([thing.bounds for thing in things] + [actor.bounds() for actor in actors])
    idents: list[tuple[int, ...]] = [()] * len(actors)
    painted: dict[int, int] = {}
    for index in painting_order(bounds):
        if index < len(things):
            things[index].paint(canvas)
            continue
        actor = actors[index - len(things)]
        own = tuple(canvas.new_id(depth=max(1.0, actor.place.z)) for _ in actor.labels)
        idents[index - len(things)] = own
        actor.paint(canvas, own)
        painted.update(_count_pixels(canvas, actor, own))
    return idents, painted


def _count_pixels(canvas: Canvas, actor: Actor, own: tuple[int, ...]) -> dict[int, int]:
    """Number of pixels of each of the actor's ids on the canvas, lit parts included."""
    x0, y0, x1, y1 = (SUPERSAMPLING * _outline(canvas.camera, actor)).round().astype(int)
    region = canvas.pixels[max(0, y0 - 16) : max(0, y1 + 16), max(0, x0 - 16) : max(0, x1 + 16), 3]
    counts = np.bincount(region.reshape(-1), minlength=256)
    return {
        ident: int(sum(counts[part] for part in range(len(canvas.owners)) if canvas.owners[part] == ident))
        for ident in own
    }


def _outline(camera: Camera, actor: Actor) -> np.ndarray:
    """XYXY in image pixels around an upright box on the actor's footprint. It may lie outside the image."""
    foot = actor.footprint()
    hull = np.concatenate([foot, foot + (0.0, actor.height + 0.1, 0.0)])
    pixels = camera.project(np.maximum(hull, (-np.inf, -np.inf, 1.0)))
    return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])


def _annotate(
    canvas: Canvas, actors: list[Actor], idents: list[tuple[int, ...]], painted: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (M, 4) around the visible pixels, and labels (M,), of all recognizable road users."""
    seen = canvas.things()
    boxes, labels = [], []
    for actor, own in zip(actors, idents):
        for label, ident in zip(actor.labels, own):
            box = _visible_box(seen == ident, painted[ident])
            if box is not None and _is_recognizable(box, canvas.camera, actor):
                boxes.append(box)
                labels.append(label)
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)


def _visible_box(mask: np.ndarray, painted: int) -> np.ndarray | None:
    """XYXY in image pixels around the mask of the supersampled canvas; None if too few painted pixels are visible."""
    visible = int(np.count_nonzero(mask))
    if visible == 0 or visible < MIN_VISIBLE * painted:
        return None
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUPERSAMPLING


def _is_recognizable(box: np.ndarray, camera: Camera, actor: Actor) -> bool:
    """Whether the box is large enough and enough of the actor lies inside the image."""
    size = (box[2:] - box[:2]) * (270.0 / camera.image_height)
    if size[0] < MIN_SIZE[0] or size[1] < MIN_SIZE[1]:
        return False
    full = _outline(camera, actor)
    return bool(np.prod(box[2:] - box[:2]) >= 0.6 * MIN_VISIBLE * np.prod(full[2:] - full[:2]))
