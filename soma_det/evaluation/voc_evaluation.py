"""Average precision by the rules of PASCAL VOC 2007: the metric that weather benchmarks report as mAP.

The rules are those of ``voc_eval`` in rbgirshick/py-faster-rcnn (lib/datasets/voc_eval.py). The code of the Diverse
Weather benchmark (AmingWu/Single-DGOD) inherits it through jwyang/faster-rcnn.pytorch, and Detectron2 carries it over
in detectron2/evaluation/pascal_voc_evaluation.py:

- detections of a class go by falling score; each is compared with the ground truth of its class in its image that it
  overlaps most. More than ``IOU_THRESHOLD``: a hit if that box was still free, else a false alarm, even if a second box
  would have matched too. A match with an ignored ("difficult") box does not count at all;
- the average is taken over the best precisions at or beyond the recalls 0, 0.1, .., 1.

The devkit's boxes are pixel indices with both ends included, so its sides are ``xmax - xmin + 1``. Detectron2 loads
such a box with ``xmin - 1, ymin - 1`` as continuous coordinates, so overlaps without the + 1 equal the devkit's.

Two things differ from Detectron2's class on purpose: scores and coordinates are not rounded, and a class without ground
truth is not AP 0 but NaN, and left out of means.
"""

from collections import OrderedDict

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from soma_det.evaluation.coco_evaluation import CocoEvaluator
from soma_det.evaluation.detections import Detections, GroundTruth

# Written as the devkit does: 0.1 steps in floating point, of which the fourth is slightly above 0.3.
RECALL_LEVELS = np.arange(0.0, 1.1, 0.1)
IOU_THRESHOLD = 0.5


class VocEvaluator(DatasetEvaluator):
    """VOC 2007's AP at IoU 0.5 of the detections that a CocoEvaluator holds, which is evaluated before."""

    def __init__(self, coco: CocoEvaluator):
        self._coco = coco

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            On the main rank ``voc``: AP50, the mean over classes, and AP50-<class>, from 0 to 100; classes without
            ground truth are NaN and left out of the mean. Other ranks return an empty dict.
        """
        if not comm.is_main_process():
            return OrderedDict()
        truth, detections = self._coco.gathered
        per_class = voc_average_precision(truth, detections)
        known = per_class[~np.isnan(per_class)]
        mean = float(known.mean()) if known.size else float("nan")
        return OrderedDict(voc={"AP50": mean, **{f"AP50-{c}": float(ap) for c, ap in zip(truth.classes, per_class)}})


def voc_average_precision(truth: GroundTruth, detections: Detections) -> np.ndarray:
    """VOC 2007 AP of every class: (len(truth.classes),) float64, 0 to 100; NaN for a class without ground truth."""
    hits = [class_hits(truth, detections, category)[1] for category in range(len(truth.classes))]
    counts = truth.counts().values()
    return np.array([100 * eleven_point_ap(hit, n) if n else float("nan") for hit, n in zip(hits, counts)])


def eleven_point_ap(hit: np.ndarray, num_truth: int) -> float:
    """AP, 0 to 1, of detections by falling score that are hits or not, (N,) bool, on at least 1 ground-truth box."""
    hits = np.cumsum(hit)
    recall = hits / num_truth
    precision = hits / np.arange(1, len(hit) + 1)
    return float(sum(precision[recall >= level].max(initial=0.0) for level in RECALL_LEVELS) / len(RECALL_LEVELS))


def best_overlap(
    boxes: np.ndarray, image: np.ndarray, truth_boxes: np.ndarray, truth_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each box, its highest IoU (N,) with a ground-truth box of the same image, and that box's row (N,).

    Boxes are XYXY_ABS, (N, 4) and (M, 4). Where the image has no ground truth, the IoU is 0 and the row -1.
    """
    overlap = np.zeros(len(boxes))
    match = np.full(len(boxes), -1, dtype=np.int64)
    rows, truth_rows = rows_of_each(image), rows_of_each(truth_image)
    for key in rows.keys() & truth_rows.keys():
        mine, theirs = rows[key], truth_rows[key]
        iou = pairwise_iou(boxes[mine], truth_boxes[theirs])
        overlap[mine], match[mine] = iou.max(axis=1), theirs[iou.argmax(axis=1)]
    return overlap, match


def pairwise_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union of XYXY_ABS boxes (N, 4) and (M, 4); 0 where both are empty."""
    # In numpy, since torchvision's box_iou takes longer for the few boxes of an image.
    top_left = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    bottom_right = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = np.prod(np.maximum(bottom_right - top_left, 0), axis=2)
    area1, area2 = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (boxes1, boxes2))
    union = area1[:, None] + area2[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def class_hits(truth: GroundTruth, detections: Detections, category: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images (N,) of one class's detections by falling score, and which are hits (N,) bool.

    Detections of boxes that are to be ignored are left out.
    """
    of_class = truth.category == category
    ignored, found = truth.ignored[of_class], detections.select(detections.category == category)
    order = np.argsort(-found.score, kind="stable")
    image = found.image[order]
    overlap, match = best_overlap(found.xyxy[order], image, truth.xyxy[of_class], truth.image[of_class])
    matched = overlap > IOU_THRESHOLD
    dropped = np.zeros(len(order), dtype=bool)
    dropped[matched] = ignored[match[matched]]
    hit = _first_claims(np.where(matched & ~dropped, match, -1))
    return image[~dropped], hit[~dropped]


def _first_claims(match: np.ndarray) -> np.ndarray:
    """(N,) bool: the first of all rows that name the same ground-truth box; -1 names none."""
    claims = np.flatnonzero(match >= 0)
    first = np.zeros(len(match), dtype=bool)
    first[claims[np.unique(match[claims], return_index=True)[1]]] = True
    return first


def rows_of_each(values: np.ndarray) -> dict[int, np.ndarray]:
    """Value -> the positions where it stands."""
    order = np.argsort(values, kind="stable")
    different, starts = np.unique(values[order], return_index=True)
    return dict(zip(different.tolist(), np.split(order, starts[1:])))
