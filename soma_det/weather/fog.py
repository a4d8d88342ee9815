"""Fog: light lost and light added on the way to the camera."""

from collections.abc import Sequence

import numpy as np

from soma_det.weather.radiance import on_radiance

CONTRAST_THRESHOLD = 0.02  # Koschmieder's limit of what an eye tells from the background


@on_radiance
def fog(
    image: np.ndarray, depth: np.ndarray, visibility: float, airlight: Sequence[float] = (0.72, 0.74, 0.76)
) -> np.ndarray:
    """Koschmieder's law (1924): I = J t + A (1 - t), t = exp(-beta d).

    visibility V in meters gives beta = 3.912 / V = -ln(0.02) / V: at V, 2 percent of the contrast is left. airlight A
    is the linear color of fog without end.

    Raises:
        ValueError: the visibility is not above 0.
    """
    if visibility <= 0.0:
        raise ValueError(f"Visibility is a distance in meters above 0, not {visibility}.")
    transmission = np.exp(np.log(CONTRAST_THRESHOLD) / visibility * depth)[..., None].astype(np.float32)
    return image * transmission + np.asarray(airlight, np.float32) * (1.0 - transmission)
