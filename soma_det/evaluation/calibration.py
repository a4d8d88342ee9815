"""Whether confidences mean what they say: the precision of detections beside their confidence.

The expected calibration error of detections is that of Kueppers et al., Multivariate Confidence Calibration for Object
Detection (CVPR Workshops 2020, arXiv 2004.13546), by confidence alone.
"""

from dataclasses import dataclass

import numpy as np

BINS = 10
LOWEST = 0.05  # Detectron2's usual limit: the many detections below it would make every detector look calibrated


@dataclass(frozen=True)
class Calibration:
    """Detections in bins of equal width by their confidence.

    Attributes:
        edges: (bins + 1,), from 0 to 1.
        count: (bins,) int64.
        confidence, precision: (bins,), means, 0 to 1; NaN in an empty bin.
        expected, largest: mean over the detections, and maximum, of the bins' distances, 0 to 1.
        excess: mean confidence minus precision of all; above 0 is overconfident. All three are NaN without detections.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    precision: np.ndarray
    expected: float
    largest: float
    excess: float


def calibration(score: np.ndarray, hit: np.ndarray, bins: int = BINS, lowest: float = LOWEST) -> Calibration:
    """Compare confidences (N,), 0 to 1, with hits (N,) bool, of the detections of at least ``lowest``."""
    score, hit = score[score >= lowest], hit[score >= lowest].astype(float)
    number = np.minimum((score * bins).astype(np.int64), bins - 1)  # of the bin; a confidence of 1 is in the last
    count = np.bincount(number, minlength=bins)
    confidence, precision = (_divide(np.bincount(number, values, bins), count) for values in (score, hit))
    edges, distance = np.linspace(0, 1, bins + 1), np.abs(precision - confidence)
    if not len(score):
        return Calibration(edges, count, confidence, precision, *[float("nan")] * 3)
    expected = float(np.nansum(count * distance) / count.sum())
    excess = float(score.mean() - hit.mean())
    return Calibration(edges, count, confidence, precision, expected, float(np.nanmax(distance)), excess)


def _divide(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
