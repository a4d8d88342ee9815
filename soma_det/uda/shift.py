"""How far domains lie apart, on the features of a frozen ViT.

Consistency within classes (ICV) and divergence between domains (IDD) are definitions of this project after Luo et al.
(CVPR workshops 2024, arXiv 2405.15961), who build both on the Jensen-Shannon divergence; the formulas are not theirs.
With features f, p = softmax(f / tau), a class c, a domain D, the entropy H in bits, and pbar the mean of p:

    JS(P, Q)   = H((P + Q) / 2) - (H(P) + H(Q)) / 2             0 to 1
    ICV(D)     = mean over c of H(pbar_Dc) - mean of H(p)       0: all boxes of a class are alike
    IDD(D, D') = mean over c of JS(pbar_Dc, pbar_D'c)           0: the classes look alike on average in both domains

The A-distance is that of Ben-David et al. (NIPS 2006): 2 (1 - 2 error) of a classifier that tells the domains apart.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5  # of the classifier's cross-validation, fewer for fewer images
RIDGE = 1.0  # of the classifier, in units of the number of features
DRAWS = 10  # random subsets of equal size, over which an estimate is averaged
Z = 1.96  # half the width of a 95 % interval, in deviations
LEAST = 30  # boxes of a class in every domain


@dataclass(frozen=True, eq=False)
class Sample:
    """The features of one domain's boxes, or of its images.

    Attributes:
        features: (N, D).
        classes: (N,) int.
        images: (N,) int, the image that each row is from.
        labels: names of the classes, at least as many as there are.
    """

    features: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    labels: tuple[str, ...]

    def rows(self, index: np.ndarray) -> "Sample":
        """Some of the rows, in the order of ``index``."""
        return Sample(self.features[index], self.classes[index], self.images[index], self.labels)

    def count(self) -> np.ndarray:
        """Rows of each class."""
        return np.bincount(self.classes, minlength=len(self.labels))


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard deviation over resampled images."""

    value: float
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %. Not percentiles: an image that is drawn twice makes a resample differ more, which moves them all up."""
        return self.value - Z * self.deviation, self.value + Z * self.deviation


@dataclass(frozen=True)
class DomainShift:
    """One domain against the source.

    Attributes:
        divergence, consistency: IDD and ICV, peak of the temperature -> estimate.
        a_distance: -2 to 2; about 0 where no classifier finds a difference, 2 where it makes no error.
    """

    divergence: dict[float, Estimate]
    consistency: dict[float, Estimate]
    a_distance: Estimate


@dataclass(frozen=True)
class ShiftTable:
    """What :func:`measure_shift` found.

    Attributes:
        null: one half of the source's images against the other half, and the source's own consistency.
        domains: domain -> its shift from the source.
        counts: class -> rows that every comparison draws from each side.
        left_out: class with fewer than ``least`` rows somewhere -> domain -> its rows.
        temperatures: peak -> tau.
    """

    null: DomainShift
    domains: dict[str, DomainShift]
    counts: dict[str, int]
    left_out: dict[str, dict[str, int]]
    temperatures: dict[float, float]


def entropy(p: np.ndarray) -> np.ndarray:
    """Of distributions along the last axis, in bits."""
    return -np.sum(p * np.log2(np.where(p > 0, p, 1)), axis=-1)


def js_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of distributions along the last axis, 0 to 1."""
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def class_variation(p: np.ndarray) -> float:
    """(N, D) distributions -> their generalized Jensen-Shannon divergence: 0 to the logarithm of N, and of D."""
    return float(entropy(p.mean(axis=0)) - entropy(p).mean())


def softmax(features: np.ndarray, temperature: float) -> np.ndarray:
    """(N, D) -> distributions over the D features."""
    scaled = features / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def fit_temperature(features: np.ndarray, peak: float) -> float:
    """The temperature at which the median of the largest probability of each row is ``peak``.

    Raises:
        ValueError: no temperature gives that.
    """
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        too_flat = np.median(softmax(features, middle).max(axis=1)) < peak
        low, high = (low, middle) if too_flat else (middle, high)
    found = float(np.median(softmax(features, high).max(axis=1)))
    if abs(found - peak) > 0.01 * peak:
        least = 1 / features.shape[1]
        raise ValueError(f"A peak of {peak:g} cannot be reached: give one above {least:.3g}, all equal, and below 1.")
    return high


def a_distance(first: Sample, second: Sample, rng: np.random.Generator) -> float:
    """2 (1 - 2 error) of a ridge classifier, cross-validated so that no image is in training and in test.

    NaN where one of the two has a single image.
    """
    number = min(FOLDS, *(len(np.unique(sample.images)) for sample in (first, second)))
    if number < 2:
        return float("nan")
    folds = np.concatenate([_folds(sample.images, number, rng) for sample in (first, second)])
    x = np.concatenate([first.features, second.features])
    y = np.concatenate([np.ones(len(first.images)), -np.ones(len(second.images))])
    wrong = np.zeros(len(y))
    for fold in range(number):
        test = folds == fold
        wrong[test] = y[test] * _ridge(x[~test], y[~test], x[test]) <= 0
    error = (wrong[y > 0].mean() + wrong[y < 0].mean()) / 2
    return float(2 * (1 - 2 * error))


def measure_shift(
    domains: Mapping[str, Sample],
    source: str,
    peaks: Sequence[float] = (0.1, 0.3),
    least: int = LEAST,
    resamples: int = 200,
    seed: int = 0,
) -> ShiftTable:
    """Compare every domain with the source.

    Features are standardized by the source, and temperatures fitted to it. All comparisons, also that of the source's
    two halves, draw as many rows of each class from each side, since JS of few rows is larger than that of many.

    Args:
        domains: domain -> its features; their order changes nothing.
        source: one of them.
        peaks: see :func:`fit_temperature`.
        least: rows that a class needs in every domain.
        resamples: of the images, for the deviations.

    Raises:
        ValueError: no class has enough rows, or a peak cannot be reached.
    """
    counts, left_out = equal_counts(domains, source, least)
    if not counts.any():
        raise ValueError(f"No class has {least} boxes in each of {', '.join(domains)}: take larger splits.")
    mean, std = domains[source].features.mean(axis=0), domains[source].features.std(axis=0)
    std = np.where(std > 1e-6 * max(float(std.max()), 1e-30), std, 1)
    scaled = {
        name: Sample((sample.features - mean) / std, sample.classes, sample.images, sample.labels)
        for name, sample in domains.items()
    }
    temperatures = {peak: fit_temperature(scaled[source].features, peak) for peak in peaks}
    shifts = {}
    for name, sample in scaled.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        other = None if name == source else sample
        points = [_compare(scaled[source], other, counts, temperatures, rng) for _ in range(DRAWS)]
        repeats = [
            _compare(_resample(scaled[source], rng), other and _resample(other, rng), counts, temperatures, rng)
            for _ in range(resamples)
        ]
        shifts[name] = _estimates(np.mean(points, axis=0), np.std(repeats, axis=0), list(peaks))
    labels = domains[source].labels
    drawn = {labels[c]: int(n) for c, n in enumerate(counts) if n}
    return ShiftTable(shifts.pop(source), shifts, drawn, left_out, temperatures)


def equal_counts(
    domains: Mapping[str, Sample], source: str, least: int
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """Rows to draw of each class, 0 for one that is left out, and the rows that those left out have in each domain.

    They are the fewest that a domain has, and at most half of the source's, which the two halves need.
    """
    found = {name: sample.count() for name, sample in domains.items()}
    fewest = np.min(list(found.values()), axis=0)
    counts = np.where(fewest >= least, np.minimum(fewest, found[source] // 2), 0)
    labels = domains[source].labels
    left_out = {
        label: {name: int(of[c]) for name, of in found.items()} for c, label in enumerate(labels) if not counts[c]
    }
    return counts, left_out


def _compare(
    source: Sample, other: Sample | None, counts: np.ndarray, temperatures: Mapping[float, float], rng
) -> np.ndarray:
    """IDD for each temperature, ICV of ``other`` for each, and the A-distance; None: the source's halves."""
    first, second = _halves(source, rng) if other is None else (source, other)
    least = np.minimum(counts, np.minimum(first.count(), second.count()))
    first, second = _draw(first, least, rng), _draw(second, least, rng)
    used = np.flatnonzero(least)
    if not len(used):
        return np.full(2 * len(temperatures) + 1, np.nan)
    divergences, variations = [], []
    for temperature in temperatures.values():
        p, q = softmax(first.features, temperature), softmax(second.features, temperature)
        pairs = [(p[first.classes == c], q[second.classes == c]) for c in used]
        divergences.append(np.mean([js_divergence(a.mean(axis=0), b.mean(axis=0)) for a, b in pairs]))
        variations.append(np.mean([class_variation(b) for _, b in pairs]))
    return np.array([*divergences, *variations, a_distance(first, second, rng)])


def _estimates(values: np.ndarray, deviations: np.ndarray, peaks: list[float]) -> DomainShift:
    every = [Estimate(float(value), float(deviation)) for value, deviation in zip(values, deviations)]
    n = len(peaks)
    return DomainShift(dict(zip(peaks, every[:n])), dict(zip(peaks, every[n : 2 * n])), every[-1])


def _draw(sample: Sample, counts: np.ndarray, rng: np.random.Generator) -> Sample:
    """``counts`` random rows of each class, without repetition."""
    index = [rng.permutation(np.flatnonzero(sample.classes == c))[:n] for c, n in enumerate(counts)]
    return sample.rows(np.concatenate(index))


def _halves(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """The images in two random halves."""
    images = rng.permutation(np.unique(sample.images))
    first = np.isin(sample.images, images[: len(images) // 2])
    return sample.rows(np.flatnonzero(first)), sample.rows(np.flatnonzero(~first))


def _resample(sample: Sample, rng: np.random.Generator) -> Sample:
    """As many images, drawn with replacement; an image keeps its number each time, so that folds keep it together."""
    order = np.argsort(sample.images, kind="stable")
    images, starts, lengths = np.unique(sample.images[order], return_index=True, return_counts=True)
    chosen = rng.integers(len(images), size=len(images))
    return sample.rows(np.concatenate([order[starts[i] : starts[i] + lengths[i]] for i in chosen]))


def _folds(images: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """A fold for each row, the same for all rows of an image."""
    _, index = np.unique(images, return_inverse=True)
    return (rng.permutation(index.max() + 1) % number)[index]


def _ridge(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions for ``test`` of a linear least-squares fit of ``y`` to ``x``."""
    mean, features = x.mean(axis=0), x.shape[1]
    centered = x - mean
    gram = centered.T @ centered + RIDGE * features * np.eye(features)
    return (test - mean) @ np.linalg.solve(gram, centered.T @ (y - y.mean())) + y.mean()
