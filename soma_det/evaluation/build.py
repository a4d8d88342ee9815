"""The evaluators of a split."""

import os

from detectron2.evaluation import DatasetEvaluators

from soma_det.evaluation.coco_evaluation import CocoEvaluator
from soma_det.evaluation.voc_evaluation import VocEvaluator


def build_evaluator(dataset_name: str, output_dir: str | os.PathLike | None = None) -> DatasetEvaluators:
    """Score a registered split by COCO's and by VOC's rules.

    Args:
        output_dir: saves the detections, as ``<output_dir>/<dataset_name>/coco_instances_results.json``; None does not.

    Returns:
        evaluators of which ``evaluate`` gives, on the main rank, ``boxes``, ``images``, ``bbox`` and ``voc``.
    """
    coco = CocoEvaluator(dataset_name, output_dir)
    return DatasetEvaluators([coco, VocEvaluator(coco)])
