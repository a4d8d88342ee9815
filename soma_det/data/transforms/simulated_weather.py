"""Fog, rain and night put on clear-day training images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from detectron2.data import transforms as T

from soma_det.weather import DOMAIN_EFFECTS, apply_weather


@dataclass(eq=False)
class SimulatedWeather(T.Augmentation):
    """Turns a share of the images into another weather, by :func:`soma_det.weather.apply_weather`.

    Takes RGB images (H, W, 3), uint8, as the camera made them: depth is guessed from a horizon at a fixed height, so
    put it before the crop. Nothing moves. Labels stay, also of what can hardly be seen any more.

    Args:
        probability: share of the images that are changed.
        domains: keys of DOMAIN_EFFECTS, of which each changed image gets one.

    Raises:
        ValueError: the probability is outside 0 to 1, or a domain is unknown.
    """

    probability: float
    domains: Sequence[str] = field(default_factory=lambda: list(DOMAIN_EFFECTS)[1:])

    def __post_init__(self) -> None:
        key = "INPUT.AUGMENTATION.WEATHER"
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{key}.PROBABILITY is {self.probability}: give a share from 0 to 1.")
        unknown = [domain for domain in self.domains if domain not in DOMAIN_EFFECTS]
        if unknown or not self.domains:
            raise ValueError(f"{key}.DOMAINS is {list(self.domains)}: choose some of {', '.join(DOMAIN_EFFECTS)}.")

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws the weather of this image."""
        if np.random.uniform() >= self.probability:
            return T.NoOpTransform()
        domain = self.domains[np.random.randint(len(self.domains))]
        seed = np.random.randint(2**31)
        return T.ColorTransform(lambda pixels: apply_weather(pixels, None, domain, np.random.default_rng(seed)))
