"""Scores per split, VOC and COCO average precision, and their summary over weathers."""

from soma_det.evaluation.coco import WeatherEvaluator

__all__ = ["WeatherEvaluator"]
