"""Several ways to adapt, each trained with several seeds, and what their scores say together."""

from adapter_comparison.plan import Comparison, load_comparison
from adapter_comparison.report import write_report
from adapter_comparison.runs import Run, TrainingProcess, load_finished, plan_runs, train_all

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
