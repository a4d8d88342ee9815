"""Scores per split, VOC and COCO average precision, and their summary over weathers."""

from soma_det.evaluation.coco_evaluation import WeatherEvaluator
from soma_det.evaluation.summary import format_table, load_results, report, summarize, write_results

__all__ = ["WeatherEvaluator", "format_table", "load_results", "report", "summarize", "write_results"]
