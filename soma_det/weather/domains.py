"""Composes the effects into the five weather domains of Diverse Weather."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from soma_det.weather.camera import expose, sensor_noise
from soma_det.weather.depth import assume_road_depth
from soma_det.weather.fog import fog
from soma_det.weather.night import blue_shift, headlamps, lamps, lit_windows, low_sky, street_lighting
from soma_det.weather.radiance import on_radiance
from soma_det.weather.rain import lens_drops, rain_streaks, rain_veil, wet_road


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

    Args:
        depth: (H, W) in meters, inf for the sky; None for `assume_road_depth` in a view of 10 to 60 m.
        lights: lamps, objects with x, y, width, height (pixels), depth (meters), color (linear RGB), power and kind
            ("street", "head", "tail"), as SynthDrive's scenes have.
        road: (H, W) bool; None for all that the guessed depth puts within 40 m.
        emission: (H, W, 3) linear radiance of lit windows; None for none.

    Raises:
        ValueError: the domain is unknown, or a shape is wrong.
    """
    if domain not in DOMAIN_EFFECTS:
        raise ValueError(f"Unknown weather domain {domain!r}: choose one of {', '.join(DOMAIN_EFFECTS)}.")
    height, width = image.shape[:2]
    guess = assume_road_depth(height, width)
    if depth is None:  # in a free view, fog would hide whatever rises above the horizon, near or far
        depth = np.minimum(guess, float(np.exp(rng.uniform(np.log(10.0), np.log(60.0)))))
    if depth.shape != (height, width):
        raise ValueError(f"Depth of shape {depth.shape} does not fit an image of {height} x {width} (H x W).")
    road = guess < 40.0 if road is None else road
    emission = np.zeros((height, width, 3), np.float32) if emission is None else emission
    scene = Scene(depth, list(lights or []), road, emission)
    return on_radiance(DOMAIN_EFFECTS[domain])(image, scene, rng)


class Scene(NamedTuple):
    """What an effect may know besides the image; see `apply_weather`."""

    depth: np.ndarray
    lights: list[Any]
    road: np.ndarray
    emission: np.ndarray


def _clear_day(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return sensor_noise(image, rng, full_well=float(rng.uniform(9000, 20000)))


def _night(image: np.ndarray, scene: Scene, rng: np.random.Generator, glow: float) -> np.ndarray:
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


def _clear_night(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return sensor_noise(_night(image, scene, rng, glow=0.5), rng, full_well=float(rng.uniform(900, 2500)))


def _rainy_dusk(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    rate, gain = float(rng.uniform(5.0, 20.0)), float(rng.uniform(0.18, 0.34))
    dusk = low_sky(blue_shift(image, 0.22), scene.depth, (0.42, 0.52, 0.80), (1.25, 1.0, 0.88))
    dusk = expose(dusk, (0.94 * gain, 0.97 * gain, 1.10 * gain))
    dusk = lamps(lit_windows(dusk, scene.emission * (0.25 + image)), scene.lights, power=0.5, glow=0.5)
    dusk = wet_road(dusk, scene.road, scene.depth, rng, wetness=float(rng.uniform(0.7, 1.0)))
    dusk = rain_veil(dusk, scene.depth, rate, airlight=(0.50 * gain, 0.53 * gain, 0.62 * gain))
    dusk = rain_streaks(dusk, scene.depth, rng, rate, light=0.9 * gain, slant=float(rng.normal(0.0, 0.12)))
    dusk = lens_drops(dusk, rng, int(rng.integers(4, 22)))
    return sensor_noise(dusk, rng, full_well=float(rng.uniform(1500, 4000)))


def _rainy_night(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    rate = float(rng.uniform(5.0, 25.0))
    dark = wet_road(
        _night(image, scene, rng, glow=0.9), scene.road, scene.depth, rng, wetness=float(rng.uniform(0.8, 1.0))
    )
    dark = rain_veil(dark, scene.depth, rate, airlight=(0.022, 0.022, 0.026))
    dark = rain_streaks(dark, scene.depth, rng, rate, light=0.22, slant=float(rng.normal(0.0, 0.12)))
    dark = lens_drops(dark, rng, int(rng.integers(6, 28)))
    return sensor_noise(dark, rng, full_well=float(rng.uniform(700, 1800)))


def _foggy_day(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
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
