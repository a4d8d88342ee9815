"""Night, rain and fog as image formation: one function per physical idea, composed into the five weather domains.

Every effect takes a picture (H, W, 3), RGB, either uint8 (sRGB encoded) or float32 (linear radiance, 1 = white on a clear
day), and returns the same kind. Depth is (H, W) in meters, inf for the sky; `assume_road_depth` guesses one for photographs.
Nothing is ever moved, so boxes stay valid. Randomness comes from the given generator alone.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import cv2
import numpy as np

CONTRAST_THRESHOLD = 0.02  # Koschmieder's limit of what an eye tells from the background
_FOCAL_SHARE = 0.95  # focal length over picture width that is assumed for lamps and rain
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


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
    """Let an effect on linear radiance take uint8 pictures too, and check its input."""

    @wraps(effect)
    def run(image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"A weather effect wants a picture (H, W, 3) in RGB, not an array of shape {image.shape}.")
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
    grey = (image @ _LUMINANCE)[..., None] * np.array([0.82, 0.96, 1.24], np.float32)
    return image + share * (grey - image)


@_on_radiance
def headlamps(image: np.ndarray, depth: np.ndarray, power: float = 1.0, horizon: float = 0.47) -> np.ndarray:
    """Light that the own car's low beam adds: inverse square of the distance, under a cut-off just below the horizon.

    The picture stands for the albedo of what it shows. power 1 doubles the light of a clear day at 8 m; horizon is the share
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
    in the world follow from the depths under a focal length of 0.95 picture widths. Lamps of other kinds than "street" and
    "window" shine away from what the picture shows.
    """
    added = np.zeros_like(image)
    for light in (light for light in lights if light.kind in ("street", "window")):
        added += _pool_of_light(depth, light)[..., None] * np.asarray(light.color, np.float32)
    return image * (1.0 + power * added)


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
        peak = tuple(
            float(channel) * power * light.power * (1.5 if light.kind == "window" else 9.0) for channel in light.color
        )
        half = (max(light.width / 2, 0.55 * scale), max(light.height / 2, 0.55 * scale))
        if light.kind == "window":
            corner = (round(light.x - half[0]), round(light.y - half[1]))
            opposite = (round(light.x + half[0]) - 1, round(light.y + half[1]) - 1)
            if opposite[0] >= corner[0] and opposite[1] >= corner[1]:
                cv2.rectangle(sources, corner, opposite, peak, -1)
            continue
        center, axes = (int(light.x * 16) - 8, int(light.y * 16) - 8), (int(half[0] * 16), int(half[1] * 16))
        cv2.ellipse(sources, center, axes, 0, 0, 360, peak, -1, cv2.LINE_8, 4)
    return sources


def _halo(sources: np.ndarray) -> np.ndarray:
    """The sources, spread narrowly, widely and very widely; wide blurs run on small pictures."""
    height, width = sources.shape[:2]
    spread = 0.5 * cv2.GaussianBlur(sources, (0, 0), height / 150.0)
    for divisor, sigma, share in ((2, height / 90.0, 0.55), (4, height / 55.0, 0.55)):
        small = cv2.resize(sources, (max(1, width // divisor), max(1, height // divisor)), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma)
        spread += share * cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return spread


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

    rate R in mm/h, from drizzle (2) to a cloudburst (100); spray and mist near the road multiply the extinction by 10, as
    dash-camera pictures show far less distance than the drops alone would hide.
    """
    if rate < 0.0:
        raise ValueError(f"The rain rate is at least 0 mm/h, not {rate}.")
    extinction = 10.0 * 0.312 * rate**0.67 / 1000.0
    return fog(image, depth, 3.912 / max(extinction, 1e-9), airlight)


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
    sharpness, offset = np.zeros((height, width), np.float32), np.zeros((height, width, 2), np.float32)
    for _ in range(count):
        radius = height * float(rng.uniform(0.010, 0.042))
        _add_drop(
            sharpness,
            offset,
            float(rng.uniform(0, width)),
            float(rng.uniform(0, height)),
            radius,
            float(rng.uniform(0.9, 1.5)),
        )
    grid = np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=2)
    blurred = cv2.GaussianBlur(image, (0, 0), height / 120.0)
    target = grid + offset
    refracted = cv2.remap(blurred, target[..., 0], target[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    alpha = cv2.GaussianBlur(sharpness, (0, 0), height / 330.0)[..., None]
    return image + alpha * (0.93 * refracted - image)


def _add_drop(cover: np.ndarray, offset: np.ndarray, x: float, y: float, radius: float, stretch: float) -> None:
    """Add one drop's cover and the shift (in pixels) to the point of the scene that it refracts."""
    height, width = cover.shape
    reach_x, reach_y = int(radius) + 2, int(radius * stretch) + 2
    x0, x1 = max(0, int(x) - reach_x), min(width, int(x) + reach_x + 1)
    y0, y1 = max(0, int(y) - reach_y), min(height, int(y) + reach_y + 1)
    dx = np.arange(x0, x1, dtype=np.float32) - x
    dy = (np.arange(y0, y1, dtype=np.float32) - y)[:, None]
    inside = (dx / radius) ** 2 + (dy / (radius * stretch)) ** 2 < 1.0
    cover[y0:y1, x0:x1][inside] = 0.9
    magnified = np.stack(np.broadcast_arrays(-dx * 4.0, -dy * 4.0), axis=2)
    offset[y0:y1, x0:x1][inside] = magnified[inside]


@_on_radiance
def wet_road(
    image: np.ndarray, road: np.ndarray, depth: np.ndarray, rng: np.random.Generator, wetness: float = 1.0
) -> np.ndarray:
    """A film of water on the road: darker asphalt that mirrors what stands beyond it, smeared downwards.

    The share mirrored is Fresnel's for water in Schlick's approximation (1994), R = 0.02 + 0.98 (1 - cos)^5; at 30 m the road
    is seen so flat that most light is mirrored. Each column of road (H, W) bool is mirrored at its upper end.
    """
    height, width = image.shape[:2]
    rows = np.arange(height)[:, None]
    contact = np.maximum.accumulate(np.where(road, -1, rows), axis=0)
    source = np.clip(2 * contact - rows, 0, height - 1)
    mirrored = np.take_along_axis(image, np.repeat(source[..., None], 3, axis=2), axis=0)
    mirrored = cv2.GaussianBlur(mirrored, (0, 0), sigmaX=height / 200.0, sigmaY=height / 32.0)
    cosine = np.clip(1.5 / np.maximum(depth, 1.5), 0.0, 1.0)
    ripples = cv2.resize(rng.random((24, 40), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    share = (0.06 + 0.94 * (1.0 - cosine) ** 5) * wetness * (0.45 + 0.55 * np.clip(ripples, 0.0, 1.0))
    share = cv2.GaussianBlur((share * road).astype(np.float32), (0, 0), height / 270.0)[..., None] * road[..., None]
    darkened = image * (1.0 - 0.45 * wetness * road[..., None])
    return darkened * (1.0 - share) + mirrored * share


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


def _clear_day(image, depth, rng, lights, road) -> np.ndarray:
    return sensor_noise(image, rng, full_well=float(rng.uniform(9000, 20000)))


def _night(image, depth, lights, rng) -> np.ndarray:
    """Radiance before lamps that look into the camera: dark ambient light, the own beam, street lamps."""
    albedo = np.minimum(image, 0.7)
    ambient = low_sky(blue_shift(image, 0.55), depth, (0.10, 0.13, 0.26), (0.62, 0.52, 0.50))
    ambient = ambient * float(rng.uniform(0.016, 0.034))
    beam = headlamps(albedo, depth, 1.0) - albedo
    lit = street_lighting(albedo, depth, lights) - albedo
    solid = ~np.isinf(depth)[..., None]
    return ambient + solid * (float(rng.uniform(0.28, 0.42)) * beam + float(rng.uniform(0.07, 0.12)) * lit)


def _clear_night(image, depth, rng, lights, road) -> np.ndarray:
    dark = lamps(_night(image, depth, lights, rng), lights, power=0.55, glow=0.55)
    return sensor_noise(dark, rng, full_well=float(rng.uniform(500, 1100)))


def _rainy_dusk(image, depth, rng, lights, road) -> np.ndarray:
    rate = float(rng.uniform(8.0, 25.0))
    gain = float(rng.uniform(0.13, 0.24))
    dusk = low_sky(blue_shift(image, 0.45), depth, (0.72, 0.76, 0.92), (1.05, 0.98, 0.95))
    dusk = expose(dusk, (0.92 * gain, 0.97 * gain, 1.12 * gain))
    dusk = lamps(dusk, lights, power=0.45, glow=0.5)
    dusk = wet_road(dusk, road, depth, rng, wetness=float(rng.uniform(0.7, 1.0)))
    dusk = rain_veil(dusk, depth, rate, airlight=(0.80 * gain, 0.84 * gain, 0.92 * gain))
    dusk = rain_streaks(dusk, depth, rng, rate, light=0.9 * gain, slant=float(rng.normal(0.0, 0.12)))
    dusk = lens_drops(dusk, rng, int(rng.integers(4, 22)))
    return sensor_noise(dusk, rng, full_well=float(rng.uniform(1500, 3000)))


def _rainy_night(image, depth, rng, lights, road) -> np.ndarray:
    rate = float(rng.uniform(8.0, 30.0))
    dark = lamps(_night(image, depth, lights, rng), lights, power=0.6, glow=0.9)
    dark = wet_road(dark, road, depth, rng, wetness=float(rng.uniform(0.8, 1.0)))
    dark = rain_veil(dark, depth, rate, airlight=(0.022, 0.022, 0.026))
    dark = rain_streaks(dark, depth, rng, rate, light=0.10, slant=float(rng.normal(0.0, 0.12)))
    dark = lens_drops(dark, rng, int(rng.integers(6, 28)))
    return sensor_noise(dark, rng, full_well=float(rng.uniform(400, 900)))


def _foggy_day(image, depth, rng, lights, road) -> np.ndarray:
    visibility = float(np.exp(rng.uniform(np.log(60.0), np.log(220.0))))
    level = float(rng.uniform(0.52, 0.74))
    flat = expose(blue_shift(image, 0.15), level / 0.74)
    flat = lamps(flat, [light for light in lights if light.kind in ("head", "tail")], power=0.25, glow=0.6)
    hazy = fog(flat, depth, visibility, airlight=(0.97 * level, level, 1.02 * level))
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
) -> np.ndarray:
    """Turn a clear-day picture (H, W, 3) RGB into one of the given domain; uint8 stays uint8, float stays linear float.

    depth (H, W) in meters, or None for `assume_road_depth`; lights as in SynthDrive's Light; road (H, W) bool. Without road,
    the lower part of the picture whose assumed depth is under 40 m counts as road.
    """
    if domain not in DOMAIN_EFFECTS:
        raise ValueError(f"Unknown weather domain {domain!r}: choose one of {', '.join(DOMAIN_EFFECTS)}.")
    height, width = image.shape[:2]
    guess = assume_road_depth(height, width)
    depth = guess if depth is None else depth
    if depth.shape != (height, width):
        raise ValueError(f"Depth of shape {depth.shape} does not fit a picture of {height} x {width} (H x W).")
    road = guess < 40.0 if road is None else road
    return _on_radiance(DOMAIN_EFFECTS[domain])(image, depth, rng, list(lights or []), road)
