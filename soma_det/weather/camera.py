"""What the camera does with the light: exposure, and noise of the sensor."""

from collections.abc import Sequence

import numpy as np

from soma_det.weather.radiance import on_radiance


@on_radiance
def expose(image: np.ndarray, gain: float | Sequence[float]) -> np.ndarray:
    """Less (or more) light, per channel if three gains are given: radiance is proportional to the light that falls."""
    return image * np.asarray(gain, np.float32)


@on_radiance
def sensor_noise(image: np.ndarray, rng: np.random.Generator, full_well: float, read_noise: float = 4.0) -> np.ndarray:
    """Shot and read noise of a sensor: variance (signal x full_well + read_noise^2) / full_well^2.

    full_well: electrons that radiance 1 frees in a pixel, small where a dark scene is amplified; read_noise in
    electrons (Foi et al., Practical Poissonian-Gaussian noise modeling, 2008).

    Raises:
        ValueError: full_well is not above 0.
    """
    if full_well <= 0.0:
        raise ValueError(f"full_well is a number of electrons above 0, not {full_well}.")
    deviation = np.sqrt(np.maximum(image, 0.0) * full_well + read_noise**2) / full_well
    return np.maximum(image + deviation * rng.standard_normal(image.shape, dtype=np.float32), 0.0)
