"""What stands behind the scores of a split: matched boxes, precision by recall, confused classes, images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from soma_det.evaluation.detections import Detections, GroundTruth
from soma_det.evaluation.voc_evaluation import pairwise_iou, rows_of_each

IOU_THRESHOLD = 0.5
RECALLS = np.linspace(0, 1, 101)  # COCO's levels


@dataclass(frozen=True)
class Matched:
    """The detections of a split and the boxes that they find, by COCO's rules at IoU 0.5.

    Attributes:
        truth: all annotated boxes.
        detections: by falling score, without those on boxes that are to be ignored.
        box: (N,) int64, the row in ``truth`` that a detection finds; -1 for a false alarm.
    """

    truth: GroundTruth
    detections: Detections
    box: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """(N,) bool: the detections that find a box."""
        return self.box >= 0

    def found(self, threshold: float = 0.0) -> np.ndarray:
        """(M,) bool: the boxes that a detection of at least this confidence finds."""
        found = np.zeros(len(self.truth.image), dtype=bool)
        found[self.box[self.hit & (self.detections.score >= threshold)]] = True
        return found


def match_boxes(truth: GroundTruth, detections: Detections) -> Matched:
    """Give each detection, by falling score, the free box of its class and image that it overlaps most."""
    detections = detections.select(np.argsort(-detections.score, kind="stable"))
    box = np.full(len(detections), -1, dtype=np.int64)
    rows, truth_rows = rows_of_each(detections.image), rows_of_each(truth.image)
    for image in rows.keys() & truth_rows.keys():
        mine, theirs = rows[image], truth_rows[image]
        overlap = _overlap(detections.xyxy[mine], truth.xyxy[theirs], truth.ignored[theirs])
        overlap[detections.category[mine][:, None] != truth.category[theirs]] = 0
        claimed = _claim(overlap, truth.ignored[theirs])
        box[mine] = np.where(claimed >= 0, theirs[claimed], -1)
    kept = box < 0
    kept[~kept] = ~truth.ignored[box[~kept]]
    return Matched(truth, detections.select(kept), box[kept])


def precision_curves(matched: Matched) -> np.ndarray:
    """(classes, 101) float64: COCO's precision, 0 to 1, at RECALLS; NaN for a class without ground truth.

    The mean of a row is COCO's AP50 of the class (but for COCO's limit of 100 detections for each image and class).
    """
    counts = matched.truth.counts().values()
    category = matched.detections.category
    curves = [precision_curve(matched.hit[category == c], n) for c, n in enumerate(counts)]
    return np.array(curves).reshape(-1, len(RECALLS))


def precision_curve(hit: np.ndarray, num_truth: int) -> np.ndarray:
    """(101,) precision at RECALLS of detections by falling score that are hits or not, (N,) bool."""
    if not num_truth:
        return np.full(len(RECALLS), np.nan)
    hits = np.cumsum(hit)
    precision = hits / np.arange(1, len(hit) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(hits / num_truth, RECALLS, side="left")]


def confusion(matched: Matched, threshold: float) -> np.ndarray:
    """(classes + 1, classes + 1) int64: rows are annotated classes, columns detected ones, the last is background.

    Detections of at least ``threshold`` count. First each finds a box of its class; those left over take, by falling
    score, boxes of other classes that are left over and that they overlap by IoU 0.5. So a rider is not confused with
    the bike below that both boxes share.
    """
    truth, number = matched.truth, len(matched.truth.classes)
    sure = matched.detections.score >= threshold
    table = np.zeros((number + 1, number + 1), dtype=np.int64)
    hits = matched.detections.category[matched.hit & sure]
    np.add.at(table, (hits, hits), 1)
    free = np.flatnonzero(~truth.ignored & ~matched.found(threshold))
    alarms = matched.detections.select(sure & ~matched.hit)
    box = match_boxes(_of_one_class(truth, free), replace(alarms, category=np.zeros_like(alarms.category))).box
    true_class = np.where(box >= 0, truth.category[free[box]] if len(free) else -1, number)
    np.add.at(table, (true_class, alarms.category), 1)
    missed = np.delete(free, box[box >= 0])
    table[:number, number] = np.bincount(truth.category[missed], minlength=number)
    return table


def image_f1(matched: Matched, threshold: float) -> np.ndarray:
    """(images,) float64: 2 hits / (2 hits + false alarms + misses) of each image; NaN where there is nothing at all.

    Detections of at least ``threshold`` count.
    """
    truth, number = matched.truth, len(matched.truth.image_ids)
    sure = matched.detections.score >= threshold
    hits = np.bincount(matched.detections.image[sure & matched.hit], minlength=number)
    boxes = np.bincount(truth.image[~truth.ignored], minlength=number)
    total = np.bincount(matched.detections.image[sure], minlength=number) + boxes
    return np.divide(2.0 * hits, total, out=np.full(number, np.nan), where=total > 0)


def extreme_images(scores: Sequence[float] | np.ndarray, boxes: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """The ``count`` best and the ``count`` worst images; of equal ones, those with more boxes. No image is in both.

    Args:
        scores: (images,), NaN is left out.
        boxes: (images,), number of annotated boxes.
    """
    scores = np.asarray(scores, dtype=float)
    known = np.flatnonzero(~np.isnan(scores))
    best = known[np.lexsort((-boxes[known], -scores[known]))][:count]
    worst = known[np.lexsort((-boxes[known], scores[known]))]
    return best.tolist(), worst[~np.isin(worst, best)][:count].tolist()


def _of_one_class(truth: GroundTruth, rows: np.ndarray) -> GroundTruth:
    none = np.zeros(len(rows), dtype=np.int64)
    return GroundTruth(truth.image_ids, ("object",), truth.image[rows], none, truth.xyxy[rows], none.astype(bool))


def _overlap(boxes: np.ndarray, truth: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(N, M) IoU; with ignored boxes, the share of the detection that lies inside, as for COCO's crowds."""
    iou = pairwise_iou(boxes, truth)
    if ignored.any():
        area, of_truth = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, truth[ignored]))
        crowd = iou[:, ignored]
        intersection = crowd / (1 + crowd) * (area[:, None] + of_truth)
        iou[:, ignored] = np.divide(intersection, area[:, None], out=np.zeros_like(crowd), where=area[:, None] > 0)
    return iou


def _claim(overlap: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(N,) int64: the column that each row takes in turn, -1 for none. Ignored columns come last and stay free."""
    claimed, free = np.full(len(overlap), -1, dtype=np.int64), ~ignored
    for row in np.flatnonzero(overlap.max(axis=1) >= IOU_THRESHOLD):
        for columns in (free, ignored):
            best = int(np.argmax(np.where(columns, overlap[row], -1)))
            if columns[best] and overlap[row, best] >= IOU_THRESHOLD:
                claimed[row] = best
                free[best] = False
                break
    return claimed
