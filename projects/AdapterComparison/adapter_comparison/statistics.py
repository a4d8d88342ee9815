"""Means, standard deviations and paired differences over trainings, with their uncertainty.

The scores of a training are a dict of split -> score, 0 to 100. A score may also be an array of scores, one for each
resample.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

UNSEEN, TARGET, RELATIVE = "unseen", "target", "relative"
CHOOSING, HELD_OUT = "choosing", "held_out"
LEVEL = 95  # percent, of every interval


@dataclass(frozen=True)
class Spread:
    """A number in several trainings.

    Attributes:
        values: seed -> number, without NaN.
        mean: NaN without any number.
        sd: sample standard deviation (n - 1); NaN with fewer than two numbers.
    """

    values: dict[int, float]
    mean: float
    sd: float


@dataclass(frozen=True)
class Difference(Spread):
    """Score minus the reference's score at the same seed, and the interval of its mean.

    Attributes:
        interval: (low, high) from :func:`bootstrap_interval`; NaN with fewer than two seeds, or without any resampled
            score.
        image_sd: of the mean, between resampled images; NaN without any resampled score.
    """

    interval: tuple[float, float]
    image_sd: float


def summarize_splits(
    scores: Mapping[str, float | np.ndarray], source: str, validation: str = "", targets: Collection[str] = ()
) -> dict[str, float | np.ndarray]:
    """The scores, their mean over the unseen splits, and that mean in percent of the source's score.

    Args:
        scores: split -> score or (resamples,) scores. NaN is left out of means.
        source: the split of the training's weather.
        validation: the unseen split that may be used to choose settings; empty: none.
        targets: splits of domains that training has seen without labels; they are not unseen.

    Returns:
        The splits, "unseen" and "relative" (NaN where the source's score is 0). With a validation split also
        "choosing", the mean over the source and the validation split, and "held_out", the mean over all others. With
        targets also "target", their mean.
    """
    splits = {name: np.asarray(score, dtype=float) for name, score in scores.items()}
    reference = splits[source]
    unseen = _mean_of(splits, set(splits) - {source, *targets})
    relative = np.divide(100 * unseen, reference, out=np.full_like(reference, np.nan), where=reference > 0)
    summary = {**scores, UNSEEN: unseen[()], RELATIVE: relative[()]}
    if validation:
        choosing = {source, validation}
        summary[CHOOSING] = _mean_of(splits, choosing)[()]
        summary[HELD_OUT] = _mean_of(splits, set(splits) - choosing)[()]
    if targets:
        summary[TARGET] = _mean_of(splits, targets)[()]
    return summary


def spread(values: Mapping[int, float]) -> Spread:
    """Mean and sample standard deviation over seeds."""
    known = {seed: float(value) for seed, value in values.items() if not np.isnan(value)}
    numbers = list(known.values())
    mean = float(np.mean(numbers)) if numbers else float("nan")
    return Spread(known, mean, float(np.std(numbers, ddof=1)) if len(numbers) > 1 else float("nan"))


def paired_difference(
    scores: Mapping[int, float],
    reference: Mapping[int, float],
    resampled: Mapping[int, np.ndarray],
    resampled_reference: Mapping[int, np.ndarray],
) -> Difference:
    """Score minus reference, seed by seed, over the seeds that both have.

    Args:
        scores, reference: seed -> score.
        resampled, resampled_reference: seed -> (resamples,) scores on resampled images. Element i of both has the
            same images.
    """
    seeds = [seed for seed in scores if seed in reference]
    differences = spread({seed: scores[seed] - reference[seed] for seed in seeds})
    seeds = list(differences.values)
    if not seeds:
        return Difference({}, differences.mean, differences.sd, (float("nan"), float("nan")), float("nan"))
    table = np.stack([resampled[seed] - resampled_reference[seed] for seed in seeds])
    # Average precision takes maxima, so resampling images raises it, and a high one more than a low one. Only the
    # variation of the resampled differences is used, around the measured differences.
    table += (np.array([*differences.values.values()]) - _nan_mean(table.T))[:, None]
    means = _nan_mean(table)
    image_sd = float(np.nanstd(means)) if not np.isnan(means).all() else float("nan")
    return Difference(differences.values, differences.mean, differences.sd, bootstrap_interval(table), image_sd)


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """The percentile interval of a mean over seeds, where each resample draws both seeds and images.

    Seeds and images are crossed: each training is tested on all images. So a resample draws one set of images for all
    trainings, and one set of seeds for all images.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007, which finds it slightly
    conservative.

    Args:
        differences: (seeds, resamples). A column holds scores on the images of one resample. NaN is left out.

    Returns:
        (low, high); NaN with fewer than two seeds or without any score.
    """
    seeds, resamples = differences.shape
    if seeds < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    means = _nan_mean(differences.T[np.arange(resamples)[:, None], drawn].T)
    tail = (100 - LEVEL) / 2
    if np.isnan(means).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _mean_of(splits: Mapping[str, np.ndarray], names: Collection[str]) -> np.ndarray:
    chosen = [score for name, score in splits.items() if name in names]
    return _nan_mean(np.stack(chosen)) if chosen else np.full_like(next(iter(splits.values())), np.nan)


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where all values are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "Mean of empty slice": NaN is right there
        return np.nanmean(values, axis=0)
