"""Night, rain and fog as image formation: one function per physical idea, composed into the five weather domains.

Every effect takes an image (H, W, 3), RGB, either uint8 (sRGB encoded) or float32 (linear radiance, 1 = white on a clear
day), and returns the same kind. Depth is (H, W) in meters, inf for the sky; `assume_road_depth` guesses one for photographs.
Nothing is ever moved, so boxes stay valid. Randomness comes from the given generator alone.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import cv2
import numpy as np

CONTRAST_THRESHOLD = 0.02  # Koschmieder's limit of what an eye tells from the background
_FOCAL_SHARE = 0.95  # focal length over image width that is assumed for lamps and rain
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear sRGB (ITU-R BT.709)


def to_linear(image: np.ndarray) -> np.ndarray:
    """uint8 sRGB (IEC 61966-2-1) to linear float32 in [0, 1]."""
    return _SRGB_TO_LINEAR[image]


def to_srgb(radiance: np.ndarray) -> np.ndarray:
    """Linear float32 to uint8 sRGB; radiance above 1 saturates."""
    roots = np.sqrt(np.clip(radiance, 0.0, 1.0), dtype=np.float32)
    return _ROOT_TO_SRGB[(roots * (len(_ROOT_TO_SRGB) - 1) + 0.5).astype(np.uint16)]


def _decoding_table() -> np.ndarray:
    """Linear radiance of each of the 256 codes."""
    encoded = np.arange(256, dtype=np.float64) / 255.0
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _encoding_table(size: int) -> np.ndarray:
    """Code of each square root of radiance in [0, 1]: nearly even steps, so a table of a few thousand is exact."""
    linear = np.linspace(0.0, 1.0, size) ** 2
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return (encoded * 255.0 + 0.5).astype(np.uint8)


_SRGB_TO_LINEAR = _decoding_table()
_ROOT_TO_SRGB = _encoding_table(16384)


def _on_radiance(effect: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Let an effect on linear radiance take uint8 images too, and check its input."""

    @wraps(effect)
    def run(image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"A weather effect wants an image (H, W, 3) in RGB, not an array of shape {image.shape}.")
        if image.dtype == np.uint8:
            return to_srgb(effect(to_linear(image), *args, **kwargs))
        return effect(image.astype(np.float32, copy=False), *args, **kwargs)

    return run


def assume_road_depth(height: int, width: int, camera_height: float = 1.5, far: float = 150.0) -> np.ndarray:
    """A guess (H, W) for a photograph from a car: a flat road below a horizon at 45 percent, `far` meters above it."""
    below = np.arange(height, dtype=np.float32) + 0.5 - 0.45 * height
    road = _FOCAL_SHARE * width * camera_height / np.maximum(below, 1e-3)
    rows = np.where(below > 0.0, np.minimum(road, far), far).astype(np.float32)
    return np.repeat(rows[:, None], width, axis=1)


@_on_radiance
def fog(
    image: np.ndarray, depth: np.ndarray, visibility: float, airlight: Sequence[float] = (0.72, 0.74, 0.76)
) -> np.ndarray:
    """Koschmieder's law (1924): I = J t + A (1 - t), t = exp(-beta d).

    visibility V in meters gives beta = 3.912 / V = -ln(0.02) / V: at V, 2 percent of the contrast is left. airlight A is the
    linear color of fog without end.
    """
    if visibility <= 0.0:
        raise ValueError(f"Visibility is a distance in meters above 0, not {visibility}.")
    transmission = np.exp(np.log(CONTRAST_THRESHOLD) / visibility * depth)[..., None].astype(np.float32)
    return image * transmission + np.asarray(airlight, np.float32) * (1.0 - transmission)


@_on_radiance
def expose(image: np.ndarray, gain: float | Sequence[float]) -> np.ndarray:
    """Less (or more) light, per channel if three gains are given: radiance is proportional to the light that falls."""
    return image * np.asarray(gain, np.float32)


@_on_radiance
def blue_shift(image: np.ndarray, share: float) -> np.ndarray:
    """Night's tone: a share of each color is replaced by bluish grey (Jensen et al., Night Rendering, 2000)."""
    mixing = (1.0 - share) * np.eye(3) + share * np.outer((0.82, 0.96, 1.24), _LUMINANCE)
    return cv2.transform(image, mixing.astype(np.float32))


@_on_radiance
def headlamps(image: np.ndarray, depth: np.ndarray, power: float = 1.0, horizon: float = 0.47) -> np.ndarray:
    """Light that the own car's low beam adds: inverse square of the distance, under a cut-off just below the horizon.

    The image stands for the albedo of what it shows. power 1 doubles the light of a clear day at 8 m; horizon is the share
    of the height at which the road meets the sky.
    """
    return image + image * (power * _low_beam(image.shape, depth, horizon))[..., None] * _BEAM_COLOR


_BEAM_COLOR = np.array([1.0, 0.94, 0.84], np.float32)


def _low_beam(shape: tuple[int, ...], depth: np.ndarray, horizon: float) -> np.ndarray:
    """Irradiance (H, W) of the own low beam, 1 at its brightest 8 m ahead."""
    height, width = shape[:2]
    across = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) / 0.42
    row = (np.arange(height, dtype=np.float32) + 0.5) / height - horizon
    cut_off = (0.10 + 0.90 / (1.0 + np.exp(-(row + 0.01) / 0.018)))[:, None]
    near = np.minimum(8.0 / np.maximum(depth, 1.0), 1.6) ** 2
    return near * cut_off * np.exp(-0.5 * across**2)[None, :]


@_on_radiance
def street_lighting(image: np.ndarray, depth: np.ndarray, lights: Sequence[Any], power: float = 1.0) -> np.ndarray:
    """Light that lamps throw on their surroundings, falling with the square of the distance from each lamp.

    lights: objects with x, y (pixels), depth (meters), color (linear RGB) and power, as SynthDrive's scenes have; distances
    in the world follow from the depths under a focal length of 0.95 image widths. Only the nearest six lamps of kind
    "street" count: others shine away from what the image shows.
    """
    street = sorted((light for light in lights if light.kind == "street"), key=lambda light: light.depth)[:6]
    if not street:
        return image
    pools = np.stack([_pool_of_light(depth, light) for light in street], axis=2)
    colors = np.asarray([light.color for light in street], np.float32)
    return image + image * (power * (pools @ colors))


def _pool_of_light(depth: np.ndarray, light: Any) -> np.ndarray:
    """Irradiance (H, W) around one lamp, relative to that 4 m away from a headlamp's power."""
    height, width = depth.shape
    focal = _FOCAL_SHARE * width
    finite = np.minimum(depth, 4.0 * light.depth + 100.0)
    u, v = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32)[:, None] + 0.5
    dx = (u - light.x) * (finite / focal)
    dy = (v - light.y) * (finite / focal)
    square = dx * dx + 0.35 * dy * dy + 0.5 * (finite - light.depth) ** 2
    return light.power * 16.0 / (16.0 + square)


@_on_radiance
def lamps(image: np.ndarray, lights: Sequence[Any], power: float = 1.0, glow: float = 1.0) -> np.ndarray:
    """Lamps that look into the camera, with the halo that eye, lens and air give them.

    The halo is a sum of wide and narrow blurs, an approximation of the glare spread function (Spencer et al., 1995) and, with
    a larger `glow`, of multiple scattering in mist (Narasimhan and Nayar, Shedding Light on the Weather, 2003).
    """
    if not lights:
        return image
    sources = _draw_sources(image.shape, lights, power)
    return image + sources + glow * _halo(sources)


def _draw_sources(shape: tuple[int, ...], lights: Sequence[Any], power: float) -> np.ndarray:
    """Radiance (H, W, 3) of the bare lamps."""
    sources = np.zeros(shape, np.float32)
    scale = shape[0] / 270.0
    for light in sorted(lights, key=lambda light: -light.depth):
        peak = tuple(float(channel) * power * light.power * 9.0 for channel in light.color)
        half = (max(light.width / 2, 0.55 * scale), max(light.height / 2, 0.55 * scale))
        center, axes = (int(light.x * 16) - 8, int(light.y * 16) - 8), (int(half[0] * 16), int(half[1] * 16))
        cv2.ellipse(sources, center, axes, 0, 0, 360, peak, -1, cv2.LINE_8, 4)
    return sources


def _halo(sources: np.ndarray) -> np.ndarray:
    """The sources, spread narrowly, widely and very widely; wide blurs run on small images."""
    height, width = sources.shape[:2]
    spread = 0.5 * cv2.GaussianBlur(sources, (0, 0), height / 150.0)
    for divisor, sigma, share in ((2, height / 90.0, 0.55), (4, height / 55.0, 0.55)):
        small = cv2.resize(sources, (max(1, width // divisor), max(1, height // divisor)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma)
        spread += share * cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return spread


@_on_radiance
def lit_windows(image: np.ndarray, emission: np.ndarray, glow: float = 1.0) -> np.ndarray:
    """Windows that shine with radiance `emission` (H, W, 3), and a faint halo; light adds up."""
    if not emission.any():
        return image
    height, width = image.shape[:2]
    small = cv2.resize(emission, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    halo = cv2.resize(cv2.GaussianBlur(small, (0, 0), height / 110.0), (width, height), interpolation=cv2.INTER_LINEAR)
    return image + emission + 0.2 * glow * halo


@_on_radiance
def sensor_noise(image: np.ndarray, rng: np.random.Generator, full_well: float, read_noise: float = 4.0) -> np.ndarray:
    """Shot and read noise of a sensor: variance (signal x full_well + read_noise^2) / full_well^2.

    full_well: electrons that radiance 1 frees in a pixel, small where a dark scene is amplified; read_noise in electrons
    (Foi et al., Practical Poissonian-Gaussian noise modeling, 2008).
    """
    if full_well <= 0.0:
        raise ValueError(f"full_well is a number of electrons above 0, not {full_well}.")
    deviation = np.sqrt(np.maximum(image, 0.0) * full_well + read_noise**2) / full_well
    return np.maximum(image + deviation * rng.standard_normal(image.shape, dtype=np.float32), 0.0)


@_on_radiance
def rain_veil(image: np.ndarray, depth: np.ndarray, rate: float, airlight: Sequence[float]) -> np.ndarray:
    """Attenuation by rain too far off to be seen as drops: fog of extinction 0.312 R^0.67 per km (Weber et al., 2015).

    rate R in mm/h, from drizzle (2) to a cloudburst (100); spray and mist near the road multiply the extinction by 3, as
    images from cars show less distance than the drops alone would hide. Rain ends at the clouds, here 300 m away.
    """
    if rate < 0.0:
        raise ValueError(f"The rain rate is at least 0 mm/h, not {rate}.")
    extinction = 3.0 * 0.312 * rate**0.67 / 1000.0
    return fog(image, np.minimum(depth, 300.0), 3.912 / max(extinction, 1e-9), airlight)


@_on_radiance
def rain_streaks(
    image: np.ndarray, depth: np.ndarray, rng: np.random.Generator, rate: float, light: float, slant: float = 0.0
) -> np.ndarray:
    """Falling drops, which the exposure draws into streaks (Garg and Nayar, Vision and Rain, 2007).

    A drop refracts the sky and so is a little brighter than what it hides, and lets the background through. Drops are placed
    evenly in the volume before the camera; one behind the scene's surface is hidden. light is the radiance that drops show,
    slant the tangent of the streaks' angle.
    """
    height, width = image.shape[:2]
    alpha = np.zeros((height, width), np.float32)
    distance = 1.5 + 28.0 * np.sqrt(rng.random(int(14 * rate)))
    x, y = rng.uniform(-0.05, 1.05, len(distance)) * width, rng.uniform(-0.2, 1.05, len(distance)) * height
    diameter = rng.uniform(0.0012, 0.003, len(distance))
    focal = _FOCAL_SHARE * width
    length = focal * 9.0 / 90.0 / distance  # a drop falls at 9 m/s, exposed for 1/90 s
    for d, u, v, wide, long in zip(
        distance, x, y, diameter * focal / distance, length * rng.uniform(0.6, 1.2, len(distance))
    ):
        _add_streak(alpha, depth, d, (u, v), (u + slant * long, v + long), wide)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 0.5 * height / 270.0)[..., None]
    return image + (light - 0.6 * image) * np.minimum(alpha, 0.6)


def _add_streak(alpha: np.ndarray, depth: np.ndarray, distance: float, start, end, wide: float) -> None:
    """Cover (H, W) of one drop, thinner than a pixel in most cases, hence fainter rather than narrower."""
    height, width = alpha.shape
    row, column = int((start[1] + end[1]) / 2), int((start[0] + end[0]) / 2)
    if not (0 <= row < height and 0 <= column < width) or depth[row, column] < distance:
        return
    ends = [(int(round(u * 16)), int(round(v * 16))) for u, v in (start, end)]
    cv2.line(alpha, *ends, min(0.55, 0.12 + 0.45 * wide), max(1, int(round(wide))), cv2.LINE_8, 4)


@_on_radiance
def lens_drops(image: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Drops on the windshield: each shows the scene upside down, wide and out of focus (Halimeh and Roser, 2009)."""
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(
        cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), (0, 0), height / 200.0
    )
    wet = image.copy()
    for _ in range(count):
        center = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        _add_drop(wet, blurred, center, height * float(rng.uniform(0.010, 0.042)), float(rng.uniform(0.9, 1.5)))
    return wet


def _add_drop(
    image: np.ndarray, blurred: np.ndarray, center: tuple[float, float], radius: float, stretch: float
) -> None:
    """Paint one drop in place; `blurred` is the scene at half the size."""
    height, width = image.shape[:2]
    x0, x1 = max(0, int(center[0] - radius) - 1), min(width, int(center[0] + radius) + 3)
    y0, y1 = max(0, int(center[1] - radius * stretch) - 1), min(height, int(center[1] + radius * stretch) + 3)
    dx = np.arange(x0, x1, dtype=np.float32) - center[0]
    dy = np.arange(y0, y1, dtype=np.float32) - center[1]
    columns = ((center[0] - 4.0 * dx) * 0.5).clip(0, blurred.shape[1] - 1).astype(np.intp)
    rows = ((center[1] - 4.0 * dy) * 0.5).clip(0, blurred.shape[0] - 1).astype(np.intp)
    distance = np.sqrt((dx / radius) ** 2 + (dy[:, None] / (radius * stretch)) ** 2)
    cover = np.clip((1.0 - distance) * radius, 0.0, 0.9)[..., None].astype(np.float32)
    refracted = blurred[rows[:, None], columns] * (1.0 - 0.35 * np.minimum(distance, 1.0) ** 4)[..., None].astype(
        np.float32
    )
    image[y0:y1, x0:x1] += cover * (refracted - image[y0:y1, x0:x1])


@_on_radiance
def wet_road(
    image: np.ndarray, road: np.ndarray, depth: np.ndarray, rng: np.random.Generator, wetness: float = 1.0
) -> np.ndarray:
    """A film of water on the road: darker asphalt that mirrors what stands beyond it, smeared downwards.

    The share mirrored is Fresnel's for water in Schlick's approximation (1994), R = 0.02 + 0.98 (1 - cos)^5; at 30 m the road
    is seen so flat that most light is mirrored. Each column of road (H, W) bool is mirrored at its upper end.
    """
    height, width = image.shape[:2]
    cosine = np.minimum(1.5 / np.maximum(depth, 1.5), 1.0)
    ripples = cv2.resize(rng.random((24, 40), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    share = (0.06 + 0.94 * (1.0 - cosine) ** 5) * wetness * (0.45 + 0.55 * np.clip(ripples, 0.0, 1.0))
    share = cv2.GaussianBlur((share * road).astype(np.float32), (0, 0), height / 270.0) * road
    keep = (1.0 - 0.45 * wetness * road) * (1.0 - share)
    return image * keep[..., None].astype(np.float32) + _mirrored(image, road) * share[..., None].astype(np.float32)


def _mirrored(image: np.ndarray, road: np.ndarray) -> np.ndarray:
    """What a rippled film of water mirrors: each column flipped at the upper end of its road, and smeared; at half size."""
    height, width = image.shape[:2]
    small = cv2.resize(image, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
    half = road[::2, ::2]
    rows = np.arange(len(half), dtype=np.int32)[:, None]
    contact = np.maximum.accumulate(np.where(half, -1, rows), axis=0)
    source = np.clip(2 * contact - rows, 0, len(half) - 1)
    flipped = small[source, np.arange(half.shape[1])]
    flipped = cv2.GaussianBlur(flipped, (0, 0), sigmaX=height / 400.0, sigmaY=height / 64.0)
    return cv2.resize(flipped, (width, height), interpolation=cv2.INTER_LINEAR)


@_on_radiance
def low_sky(image: np.ndarray, depth: np.ndarray, top: Sequence[float], bottom: Sequence[float]) -> np.ndarray:
    """Color the sky (depth inf) by factors from `top` down to the horizon's `bottom`, as after sunset."""
    sky = np.isinf(depth)
    if not sky.any():
        return image
    last = max(1, int(np.flatnonzero(sky.any(axis=1))[-1]))
    share = np.minimum(np.arange(image.shape[0], dtype=np.float32) / last, 1.0)[:, None, None] ** 2
    factor = np.asarray(top, np.float32) * (1.0 - share) + np.asarray(bottom, np.float32) * share
    return np.where(sky[..., None], image * factor, image)


class Context(NamedTuple):
    """What an effect may know about a scene besides its image; see `apply_weather`."""

    depth: np.ndarray
    lights: list[Any]
    road: np.ndarray
    emission: np.ndarray


def _clear_day(image: np.ndarray, scene: Context, rng: np.random.Generator) -> np.ndarray:
    return sensor_noise(image, rng, full_well=float(rng.uniform(9000, 20000)))


def _night(image: np.ndarray, scene: Context, rng: np.random.Generator, glow: float) -> np.ndarray:
    """Dark ambient light, the own beam, street lamps, lit windows, and lamps that look into the camera."""
    albedo = np.minimum(image, 0.7)
    ambient = low_sky(blue_shift(image, 0.5), scene.depth, (0.12, 0.16, 0.30), (0.60, 0.48, 0.42))
    ambient = ambient * float(rng.uniform(0.03, 0.07))
    beam = headlamps(albedo, scene.depth) - albedo
    lit = street_lighting(albedo, scene.depth, scene.lights) - albedo
    solid = ~np.isinf(scene.depth)[..., None]
    dark = ambient + solid * (float(rng.uniform(0.40, 0.65)) * beam + float(rng.uniform(0.20, 0.36)) * lit)
    dark = lit_windows(dark, scene.emission * (0.35 + image), glow)
    return lamps(dark, scene.lights, power=0.6, glow=glow)


def _clear_night(image: np.ndarray, scene: Context, rng: np.random.Generator) -> np.ndarray:
    return sensor_noise(_night(image, scene, rng, glow=0.5), rng, full_well=float(rng.uniform(900, 2500)))


def _rainy_dusk(image: np.ndarray, scene: Context, rng: np.random.Generator) -> np.ndarray:
    rate, gain = float(rng.uniform(5.0, 20.0)), float(rng.uniform(0.18, 0.34))
    dusk = low_sky(blue_shift(image, 0.22), scene.depth, (0.42, 0.52, 0.80), (1.25, 1.0, 0.88))
    dusk = expose(dusk, (0.94 * gain, 0.97 * gain, 1.10 * gain))
    dusk = lamps(lit_windows(dusk, scene.emission * (0.25 + image)), scene.lights, power=0.5, glow=0.5)
    dusk = wet_road(dusk, scene.road, scene.depth, rng, wetness=float(rng.uniform(0.7, 1.0)))
    dusk = rain_veil(dusk, scene.depth, rate, airlight=(0.50 * gain, 0.53 * gain, 0.62 * gain))
    dusk = rain_streaks(dusk, scene.depth, rng, rate, light=0.9 * gain, slant=float(rng.normal(0.0, 0.12)))
    dusk = lens_drops(dusk, rng, int(rng.integers(4, 22)))
    return sensor_noise(dusk, rng, full_well=float(rng.uniform(1500, 4000)))


def _rainy_night(image: np.ndarray, scene: Context, rng: np.random.Generator) -> np.ndarray:
    rate = float(rng.uniform(5.0, 25.0))
    dark = wet_road(
        _night(image, scene, rng, glow=0.9), scene.road, scene.depth, rng, wetness=float(rng.uniform(0.8, 1.0))
    )
    dark = rain_veil(dark, scene.depth, rate, airlight=(0.022, 0.022, 0.026))
    dark = rain_streaks(dark, scene.depth, rng, rate, light=0.22, slant=float(rng.normal(0.0, 0.12)))
    dark = lens_drops(dark, rng, int(rng.integers(6, 28)))
    return sensor_noise(dark, rng, full_well=float(rng.uniform(700, 1800)))


def _foggy_day(image: np.ndarray, scene: Context, rng: np.random.Generator) -> np.ndarray:
    visibility = float(np.exp(rng.uniform(np.log(60.0), np.log(240.0))))
    level = float(rng.uniform(0.50, 0.74))
    flat = expose(blue_shift(image, 0.12), level / 0.74)
    flat = lamps(flat, [light for light in scene.lights if light.kind != "street"], power=0.25, glow=0.6)
    hazy = fog(flat, scene.depth, visibility, airlight=(0.97 * level, level, 1.02 * level))
    return sensor_noise(hazy, rng, full_well=float(rng.uniform(5000, 12000)))


DOMAIN_EFFECTS: dict[str, Callable[..., np.ndarray]] = {
    "daytime_clear": _clear_day,
    "night_sunny": _clear_night,
    "dusk_rainy": _rainy_dusk,
    "night_rainy": _rainy_night,
    "daytime_foggy": _foggy_day,
}


def apply_weather(
    image: np.ndarray,
    depth: np.ndarray | None,
    domain: str,
    rng: np.random.Generator,
    lights: Sequence[Any] | None = None,
    road: np.ndarray | None = None,
    emission: np.ndarray | None = None,
) -> np.ndarray:
    """Turn a clear-day image (H, W, 3) RGB into one of the given domain; uint8 stays uint8, float stays linear float.

    depth (H, W) in meters, or None for `assume_road_depth`; lights as in SynthDrive's Light; road (H, W) bool, or None for all
    that the guessed depth puts within 40 m; emission (H, W, 3) linear radiance of lit windows, or None for none.
    """
    if domain not in DOMAIN_EFFECTS:
        raise ValueError(f"Unknown weather domain {domain!r}: choose one of {', '.join(DOMAIN_EFFECTS)}.")
    height, width = image.shape[:2]
    guess = assume_road_depth(height, width)
    depth = guess if depth is None else depth
    if depth.shape != (height, width):
        raise ValueError(f"Depth of shape {depth.shape} does not fit an image of {height} x {width} (H x W).")
    road = guess < 40.0 if road is None else road
    emission = np.zeros((height, width, 3), np.float32) if emission is None else emission
    scene = Context(depth, list(lights or []), road, emission)
    return _on_radiance(DOMAIN_EFFECTS[domain])(image, scene, rng)
