"""Which differences a comparison can tell, from its noise over seeds and over test images.

The mean difference of two configurations over n seeds, tested on the same images, has the variance
``seed_sd^2 / n + image_sd^2 / k``: the first part falls with the seeds, the second one only with the test images, of
which there are k times as many as were measured with. It is found with a probability of 80 percent where it is 2.80
times its standard deviation (1.96 for a two-sided test at 5 percent, 0.84 for the power), by the normal approximation.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from adapter_comparison.statistics import LEVEL, Difference

POWER = 80  # percent
TARGET = 1.5  # points, the difference that a comparison should tell
QUANTILES = NormalDist().inv_cdf(0.5 + LEVEL / 200) + NormalDist().inv_cdf(POWER / 100)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of a paired difference, in points.

    Attributes:
        seed_sd: between seeds, on the same test images.
        image_sd: of the mean over seeds, between draws of the test images.
    """

    seed_sd: float
    image_sd: float


def pooled_noise(differences: Iterable[Difference]) -> Noise | None:
    """The noise that all differences of a comparison share: the root of the mean variance, weighted by n - 1 for seeds.

    Returns:
        None where no difference has two seeds.
    """
    known = [d for d in differences if not math.isnan(d.sd) and not math.isnan(d.image_sd)]
    if not known:
        return None
    freedom = [len(d.values) - 1 for d in known]
    between_seeds = sum(f * d.sd**2 for f, d in zip(freedom, known)) / sum(freedom)
    between_images = sum(d.image_sd**2 for d in known) / len(known)
    return Noise(math.sqrt(between_seeds), math.sqrt(between_images))


def detectable_difference(noise: Noise, seeds: int, images: float = 1.0) -> float:
    """The smallest true difference, in points, that is found with 80 percent probability.

    Args:
        images: how many times the test images that the noise was measured with.
    """
    return QUANTILES * math.sqrt(noise.seed_sd**2 / seeds + noise.image_sd**2 / images)


def seeds_needed(noise: Noise, difference: float, images: float = 1.0) -> int | None:
    """Seeds for a detectable difference of at most ``difference`` points; None where the images alone hide it."""
    room = (difference / QUANTILES) ** 2 - noise.image_sd**2 / images
    return max(1, math.ceil(noise.seed_sd**2 / room)) if room > 0 else None


def describe_power(noise: Noise | None, seeds: int, headline: str = "unseen") -> str:
    """One paragraph for a report."""
    if noise is None:
        return "Detectable difference: not known, since that takes two seeds of two configurations."
    ways = {"these test images": 1, "four times as many": 4}
    needs = [f"{_count(seeds_needed(noise, TARGET, times))} with {images}" for images, times in ways.items()]
    return (
        f"Detectable difference of the {headline} mean: {detectable_difference(noise, seeds):.1f} points ({seeds} "
        f"seed{'s' if seeds > 1 else ''}, {POWER} percent power, two-sided {100 - LEVEL} percent). What is smaller is "
        f"untold. Noise of a paired difference, pooled over the table: {noise.seed_sd:.1f} between seeds, "
        f"{noise.image_sd:.1f} between draws of the test images. To tell {TARGET} points takes {', '.join(needs)}."
    )


def _count(seeds: int | None) -> str:
    return "no number of seeds" if seeds is None else f"{seeds} seed{'s' if seeds > 1 else ''}"
