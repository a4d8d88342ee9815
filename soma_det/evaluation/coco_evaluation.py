"""COCO's average precisions by Detectron2's COCOEvaluator, computed with faster-coco-eval."""

import contextlib
import gc
import logging
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster

from soma_det.evaluation.collector import DetectionCollector
from soma_det.evaluation.detections import Detections, GroundTruth

MAX_DETECTIONS = 100  # per image and class, by COCO's rules
CLASS_AXIS = {"precision": 2, "recall": 1}  # of what COCO's evaluation accumulates

logger = logging.getLogger(__name__)


class CocoEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for boxes, whose metrics and log it has, on a collector's detections.

    COCOEvaluator itself keeps a dict per detection, does not evaluate a split without detections, and converts other
    data sets to a cached COCO json file, which outlives changes of the data and rounds the boxes.
    """

    reset, process = DatasetEvaluator.reset, DatasetEvaluator.process  # which do nothing

    def __init__(self, collector: DetectionCollector):
        # Not COCOEvaluator's own, which would convert the data set.
        self._collector = collector
        self._logger = logger

    def evaluate(self) -> OrderedDict:
        """Score what the collector holds; call its ``evaluate`` before.

        Returns:
            On the main rank ``bbox``: AP, AP50, AP75, APs, APm, APl and, per class, AP-<class>, from 0 to 100, NaN
            where there is no ground truth; means are over the other classes. Sizes go by the area of the box. Other
            ranks return an empty dict.
        """
        if not comm.is_main_process():
            return OrderedDict()
        truth, detections = self._collector.gathered
        results = self._derive_coco_results(evaluate_coco(truth, detections), "bbox", truth.classes)
        if len(truth.classes) == 1:  # Detectron2 leaves it out as it equals the mean
            results[f"AP-{truth.classes[0]}"] = results["AP"]
        return OrderedDict(bbox=results)


def evaluate_coco(truth: GroundTruth, detections: Detections) -> COCOeval_faster:
    """Match and summarize by COCO's rules.

    Classes are evaluated one by one, which needs memory for one only. The numbers are the same as of all at once,
    because COCO's matching and its limit of detections per image are per class.

    Returns:
        an evaluation with ``stats``, as pycocotools has them, and ``eval["precision"]``, (10, 101, classes, 4, 1): IoU
        thresholds, recalls, classes, areas (all, small, medium, large); 0 to 1, -1 where there is no ground truth.
    """
    images = [{"id": i} for i in range(1, len(truth.image_ids) + 1)]
    with _garbage_collection_paused():
        parts = [_evaluate_class(truth, detections, c, images) for c in range(len(truth.classes))]
    whole = _evaluation()
    whole.eval = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in CLASS_AXIS.items()}
    whole.summarize()
    return whole


def _evaluate_class(truth: GroundTruth, detections: Detections, category: int, images: list[dict]) -> dict:
    of_class = truth.category == category
    annotations = _coco_annotations(
        truth.image[of_class], truth.xyxy[of_class], iscrowd=truth.ignored[of_class].astype(int)
    )
    found = detections.select(detections.category == category)
    results = _coco_annotations(found.image, found.xyxy, score=found.score)
    evaluation = _evaluation(_coco_index(images, annotations), _coco_index(images, results))
    evaluation.evaluate()
    evaluation.accumulate()
    return {name: np.asarray(evaluation.eval[name]) for name in CLASS_AXIS}


def _evaluation(truth: COCO | None = None, detections: COCO | None = None) -> COCOeval_faster:
    evaluation = COCOeval_faster(truth, detections, "bbox", print_function=logger.debug)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    return evaluation


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """COCO wants a dict for each box; while these are made, the collector would check all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _coco_annotations(image: np.ndarray, xyxy: np.ndarray, **extra: np.ndarray) -> list[dict]:
    """Boxes as COCO annotations; ids start at 1, because COCO's matching reads 0 as "no match"."""
    size = xyxy[:, 2:] - xyxy[:, :2]
    columns = {
        "id": np.arange(1, len(image) + 1),
        "image_id": image + 1,
        "bbox": np.concatenate([xyxy[:, :2], size], axis=1),
        "area": np.prod(size, axis=1),
        **extra,
    }
    rows = zip(*(column.tolist() for column in columns.values()))
    return [{"category_id": 1, "iscrowd": 0, **dict(zip(columns, row))} for row in rows]


def _coco_index(images: list[dict], annotations: list[dict]) -> COCO:
    index = COCO()
    index.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    index.createIndex()
    return index
