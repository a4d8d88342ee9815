"""How the score on a split varies with the choice of its images: VOC AP50 on images drawn with replacement.

Whether a detection is a hit depends on its own image alone. So the detections are matched once, and a resample weights
each of them by how often its image was drawn.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soma_det.evaluation.detections import Detections, GroundTruth, load_detections, load_ground_truth
from soma_det.evaluation.voc_evaluation import RECALL_LEVELS, class_hits

RESAMPLES = 1000
CHUNK = 4_000_000  # weights of detections held at a time


@dataclass(frozen=True)
class Matches:
    """The detections of one class by falling score, compared with the ground truth.

    Attributes:
        image: (N,) position of each detection's image.
        hit: (N,) bool.
        truth_per_image: (images,) number of boxes that count.
    """

    image: np.ndarray
    hit: np.ndarray
    truth_per_image: np.ndarray


def resample_split(dataset_name: str, detections: str | Path, resamples: int = RESAMPLES) -> np.ndarray:
    """AP50 of saved detections on resampled images of a registered split.

    The images drawn depend on the split's name alone, so that all trainings meet the same ones.

    Args:
        detections: a file of :func:`soma_det.evaluation.detections.save_detections`.

    Returns:
        (resamples, classes) 0 to 100; NaN where the images drawn have no box of the class.
    """
    truth, found = load_ground_truth(dataset_name), load_detections(detections, dataset_name)
    return resampled_average_precision(truth, found, resamples, seed=zlib.crc32(dataset_name.encode()))


def resampled_average_precision(truth: GroundTruth, detections: Detections, resamples: int, seed: int) -> np.ndarray:
    """As :func:`resample_split`, for boxes at hand."""
    matches = [match_class(truth, detections, category) for category in range(len(truth.classes))]
    rng, images = np.random.default_rng(seed), len(truth.image_ids)
    chunk = max(1, CHUNK // max(images, *(len(m.image) for m in matches)))
    parts = []
    for start in range(0, resamples, chunk):
        size = (min(chunk, resamples - start), images)
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=size[0])
        parts.append(np.stack([weighted_average_precision(match, drawn) for match in matches], axis=1))
    return np.concatenate(parts)


def match_class(truth: GroundTruth, detections: Detections, category: int) -> Matches:
    """Hits and false alarms of one class, by the rules of :mod:`soma_det.evaluation.voc_evaluation`."""
    image, hit = class_hits(truth, detections, category)
    counted = (truth.category == category) & ~truth.ignored
    return Matches(image, hit, np.bincount(truth.image[counted], minlength=len(truth.image_ids)))


def weighted_average_precision(matches: Matches, drawn: np.ndarray) -> np.ndarray:
    """AP50 where image i counts ``drawn[:, i]`` times.

    Args:
        drawn: (resamples, images) int.

    Returns:
        (resamples,) 0 to 100; NaN where the images drawn have no box.
    """
    total = drawn @ matches.truth_per_image
    hits_at = np.flatnonzero(matches.hit)
    if not len(hits_at):
        return np.where(total > 0, 0.0, np.nan)
    # Precision rises at hits only, so the best precision beyond a recall is found at one of them.
    hits = np.cumsum(drawn[:, matches.image[hits_at]], axis=1)
    all_so_far = np.cumsum(drawn[:, matches.image], axis=1)[:, hits_at]
    precision = hits / np.maximum(all_so_far, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # of a recall that is never reached
    recall = hits / np.maximum(total, 1)[:, None]
    rows = np.arange(len(best))
    area = sum(best[rows, (recall < level).sum(axis=1)] for level in RECALL_LEVELS) / len(RECALL_LEVELS)
    return np.where(total > 0, 100 * area, np.nan)
