"""How the score on a split varies with the choice of its images: VOC AP50 on images drawn anew, with replacement.

Whether a detection is a hit depends on nothing but its own image. So the detections are matched once, and a resample
only weighs each of them by how often its image was drawn.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soma_det.evaluation.detections import Detections, GroundTruth, load_ground_truth
from soma_det.evaluation.coco_evaluation import dataset_category_ids
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


def resample_split(dataset_name: str, predictions: str | Path, resamples: int = RESAMPLES) -> np.ndarray:
    """AP50 of saved detections on resampled images of a registered split.

    The images drawn depend on the split's name alone, so that all trainings meet the same ones.

    Args:
        predictions: a file of :func:`soma_det.evaluation.coco_evaluation.save_predictions`.

    Returns:
        (resamples, classes) 0 to 100; NaN where the images drawn have no box of the class.
    """
    truth = load_ground_truth(dataset_name)
    detections = load_detections(dataset_name, truth, predictions)
    return resampled_average_precision(truth, detections, resamples, seed=zlib.crc32(dataset_name.encode()))


def load_detections(dataset_name: str, truth: GroundTruth, predictions: str | Path) -> Detections:
    """Read detections in COCO's results format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has detections on an image that is not in the split.
    """
    entries = json.loads(Path(predictions).read_text(encoding="utf-8"))
    position = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    unknown = next((e["image_id"] for e in entries if e["image_id"] not in position), None)
    if unknown is not None:
        raise ValueError(
            f"{predictions} has detections on {unknown!r}, which is not in {dataset_name}: the data set has changed since. "
            "Restore it, or train into another output folder."
        )
    numbers = {category_id: number for number, category_id in dataset_category_ids(dataset_name).items()}
    xywh = np.array([e["bbox"] for e in entries], dtype=np.float64).reshape(-1, 4)
    return Detections(
        image=np.array([position[e["image_id"]] for e in entries], dtype=np.int64),
        category=np.array([numbers[e["category_id"]] for e in entries], dtype=np.int64),
        xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        score=np.array([e["score"] for e in entries], dtype=np.float64),
    )


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
