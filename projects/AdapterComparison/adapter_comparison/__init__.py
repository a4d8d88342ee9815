"""Compares configurations of the detector: each is trained with several seeds and tested in every weather."""

from adapter_comparison.plan import Comparison, load_comparison
from adapter_comparison.process import TrainingProcess
from adapter_comparison.report import write_report
from adapter_comparison.runs import Run, load_finished, plan_runs
from adapter_comparison.training import train_all

__all__ = [
    "Comparison",
    "Run",
    "TrainingProcess",
    "load_comparison",
    "load_finished",
    "plan_runs",
    "train_all",
    "write_report",
]
