"""Which images to label next, from what a detector says about them. No label of the images is looked at.

This carries LFTL (Lyu et al., "Learn from the Learnt: Source-Free Active Domain Adaptation via Contrastive Sampling and
Visual Persistence", ECCV 2024) from classification to detection. With the probabilities p of a box, background among
them, and those of the model of the round before:

    margin of a box  = the largest minus the second of p + 0.03 (p - p_before)
    score of an image = mean of the 10 smallest margins of its boxes + 0.1 times the mean weight of their classes

Boxes count whose foreground probability is above 0.1. The weight of a class is how frequent it is among the 500 boxes
with the largest margins, relative to the most frequent: rare classes come first. The lowest scores are labelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST = 10  # margins of an image that count
FOREGROUND = 0.1  # probability of the likeliest class above which a box counts
CHANGE = 0.03  # weight of the change between rounds
CLASS_WEIGHT = 0.1
SUREST = 500  # boxes that the classes' frequencies are taken from


@dataclass(frozen=True, eq=False)
class ImageScores:
    """What a detector says about one image.

    Attributes:
        margins: (N,), of the boxes that count.
        classes: (N,) int, the likeliest class of each that is not background.
        objectness: 0 to 1, the largest that the proposals have.
        boxes: how many boxes it seems to have, a stand-in for the cost of its labels.
    """

    margins: np.ndarray
    classes: np.ndarray
    objectness: float
    boxes: int


@dataclass(frozen=True)
class Rank:
    """An image's place, by its index; ``score`` is its objectness where ``has_boxes`` is False."""

    index: int
    score: float
    has_boxes: bool
    reason: str


@dataclass(frozen=True)
class Picks:
    """The images to label, in order, and of those left out as near-duplicates the image that each resembles."""

    ranks: list[Rank]
    duplicates: dict[int, int]
    boxes: int


def box_margins(
    probabilities: np.ndarray, before: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K + 1) probabilities, background last, and those of the same boxes one round before.

    Returns:
        margins and classes, as in :class:`ImageScores`, of the boxes that count; and their indices.
    """
    foreground = probabilities[:, :-1]
    index = np.flatnonzero(foreground.max(axis=1, initial=0) > FOREGROUND)
    moved = probabilities if before is None else probabilities + CHANGE * (probabilities - before)
    largest = np.sort(moved[index], axis=1)[:, -2:]
    return largest[:, 1] - largest[:, 0], foreground[index].argmax(axis=1), index


def class_weights(images: Sequence[ImageScores], classes: int) -> np.ndarray:
    """(classes,), 0 to 1: how frequent each is among the boxes with the largest margins; 0 without any box."""
    margins = np.concatenate([np.zeros(0), *(image.margins for image in images)])
    labels = np.concatenate([np.zeros(0, int), *(image.classes for image in images)]).astype(int)
    surest = np.argsort(-margins, kind="stable")[:SUREST]
    counts = np.bincount(labels[surest], minlength=classes)
    return counts / max(counts.max(initial=0), 1)


def rank_images(images: Sequence[ImageScores], labels: Sequence[str]) -> list[Rank]:
    """All images, those to label first in front.

    Images without any box that counts come last, those with the largest objectness first: what they hold was missed.

    Args:
        labels: names of the classes.
    """
    weights = class_weights(images, len(labels))
    ranks = [_rank(index, image, weights, labels) for index, image in enumerate(images)]
    return sorted(ranks, key=lambda rank: (not rank.has_boxes, rank.score if rank.has_boxes else -rank.score))


def pick_images(
    ranks: Sequence[Rank],
    boxes: Sequence[int],
    *,
    most_boxes: int | None = None,
    most_images: int | None = None,
    features: np.ndarray | None = None,
    similarity: float = 1.0,
    labelled: Sequence[int] = (),
) -> Picks:
    """Go through a ranking until the budget is spent, and leave out near-duplicates.

    Args:
        boxes: of each image, by index. An image without any costs as much as one box: somebody has to look at it.
        most_boxes, most_images: the budget; one of them at least. The last image may exceed ``most_boxes``.
        features: (images, D), by which images are compared.
        similarity: cosine of standardized features from which on an image is a near-duplicate of one before it.
        labelled: images that have labels already: they are not picked, nor are near-duplicates of them.

    Raises:
        ValueError: there is no budget.
    """
    if most_boxes is None and most_images is None:
        raise ValueError("There is no budget: give a number of boxes or of images.")
    directions = None if features is None else unit_directions(features)
    taken, spent = list(labelled), 0
    ranked: list[Rank] = []
    duplicates: dict[int, int] = {}
    for rank in ranks:
        full = spent >= (most_boxes if most_boxes is not None else np.inf)
        if full or len(ranked) >= (most_images if most_images is not None else np.inf):
            break
        if rank.index in labelled:
            continue
        if directions is not None and taken:
            cosines = directions[taken] @ directions[rank.index]
            if cosines.max() >= similarity:
                duplicates[rank.index] = taken[int(cosines.argmax())]
                continue
        taken.append(rank.index)
        ranked.append(rank)
        spent += max(boxes[rank.index], 1)
    return Picks(ranked, duplicates, spent)


def unit_directions(features: np.ndarray) -> np.ndarray:
    """(N, D), standardized over the images, each row of length 1: what all images share makes no two alike."""
    std = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(std > 0, std, 1)
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)


def _rank(index: int, image: ImageScores, weights: np.ndarray, labels: Sequence[str]) -> Rank:
    if not len(image.margins):
        reason = f"no box above {FOREGROUND:g}; largest objectness {image.objectness:.2f}"
        return Rank(index, float(image.objectness), False, reason)
    smallest = np.argsort(image.margins, kind="stable")[:SMALLEST]
    margin, classes = float(image.margins[smallest].mean()), image.classes[smallest]
    score = margin + CLASS_WEIGHT * float(weights[classes].mean())
    names = ", ".join(labels[c] for c in dict.fromkeys(classes.tolist()))
    reason = f"mean margin {margin:.2f} of {len(smallest)} in {len(image.margins)} boxes: {names}"
    return Rank(index, score, True, reason)
