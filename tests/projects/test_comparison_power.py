"""What a comparison can tell, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from adapter_comparison.power import Noise, describe_power, detectable_difference, pooled_noise, seeds_needed
from adapter_comparison.statistics import Difference, paired_difference

NAN = float("nan")


def difference(sd, image_sd, seeds):
    return Difference(dict.fromkeys(range(seeds), 0.0), 0.0, sd, (0.0, 0.0), image_sd)


def test_a_detectable_difference_is_2_80_standard_errors():
    # sqrt(3^2 / 9 + 0) = 1, and sqrt(0 + 2^2 / 4) = 1; 1.959964 + 0.841621 = 2.801585
    assert detectable_difference(Noise(3.0, 0.0), seeds=9) == pytest.approx(2.801585, abs=1e-6)
    assert detectable_difference(Noise(0.0, 2.0), seeds=9, images=4) == pytest.approx(2.801585, abs=1e-6)
    # sqrt(16 / 4 + 9 / 1.8) = sqrt(4 + 5) = 3
    assert detectable_difference(Noise(4.0, 3.0), seeds=4, images=1.8) == pytest.approx(3 * 2.801585, abs=1e-5)


def test_seeds_needed_are_the_fewest_that_reach_the_difference():
    # 1.5 / 2.801585 = 0.535411, squared 0.286664: 2^2 / 0.286664 = 13.95
    noise = Noise(2.0, 0.0)
    assert seeds_needed(noise, 1.5) == 14
    assert detectable_difference(noise, 14) <= 1.5 < detectable_difference(noise, 13)


def test_no_number_of_seeds_helps_where_the_images_hide_the_difference():
    # 0.6^2 = 0.36 > 0.286664; with twice the images 0.18 leaves 0.106664, and 1 / 0.106664 = 9.4.
    assert seeds_needed(Noise(1.0, 0.6), 1.5) is None
    assert seeds_needed(Noise(1.0, 0.6), 1.5, images=2) == 10


def test_variances_are_pooled_by_their_degrees_of_freedom():
    # Seeds: (2 * 3^2 + 1 * 6^2) / 3 = 18. Images: (1 + 9) / 2 = 5.
    noise = pooled_noise([difference(3.0, 1.0, 3), difference(6.0, 3.0, 2), difference(NAN, 1.0, 1)])
    assert (noise.seed_sd, noise.image_sd) == pytest.approx((math.sqrt(18), math.sqrt(5)))
    assert pooled_noise([difference(NAN, 1.0, 1)]) is None


def test_the_noise_of_images_is_that_of_the_mean_over_seeds():
    # Resampled differences of two seeds: their mean over seeds is +1 or -1, so its deviation is 1.
    waves = {1: np.array([3.0, -3.0] * 50), 2: np.array([-1.0, 1.0] * 50)}
    zero = {seed: np.zeros(100) for seed in waves}
    of = paired_difference({1: 5.0, 2: 7.0}, {1: 0.0, 2: 0.0}, waves, zero)
    assert of.image_sd == pytest.approx(1.0)


def test_found_differences_are_as_many_as_the_power_says():
    """2,000 simulated comparisons with a true difference that is just detectable: 80 percent exceed 1.96 errors."""
    noise, seeds, rng = Noise(2.0, 0.7), 5, np.random.default_rng(0)
    true = detectable_difference(noise, seeds)
    means = true + rng.normal(0, noise.seed_sd, (2000, seeds)).mean(axis=1) + rng.normal(0, noise.image_sd, 2000)
    error = math.sqrt(noise.seed_sd**2 / seeds + noise.image_sd**2)
    assert 0.77 < (means > 1.96 * error).mean() < 0.83


def test_the_paragraph_says_what_can_be_told_and_what_it_takes():
    text = describe_power(Noise(2.0, 0.6), 3)
    assert "3.6 points (3 seeds, 80 percent power" in text  # 2.801585 sqrt(4 / 3 + 0.36)
    assert "no number of seeds with these test images, 21 seeds with four times as many" in text  # 4 / (0.2867 - 0.09)
    assert "not known" in describe_power(None, 1)
