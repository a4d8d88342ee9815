"""Scores per split, VOC and COCO average precision, and their summary over weathers."""

from soma_det.evaluation.build import build_evaluator
from soma_det.evaluation.results import format_table, load_results, report, write_results
from soma_det.evaluation.summary import domain_labels, summarize

__all__ = ["build_evaluator", "domain_labels", "format_table", "load_results", "report", "summarize", "write_results"]
