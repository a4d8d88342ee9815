"""Fills the template with the runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reporting.charts import Axis, Line, line_chart, range_axis, reliability_chart
from reporting.run import Run
from soma_det.config.defaults import default_cfg, flatten
from soma_det.evaluation.analysis import RECALLS
from soma_det.evaluation.calibration import LOWEST
from soma_det.evaluation.error_kinds import KINDS

SIZES = {"APs": "small (below 32² pixels)", "APm": "medium", "APl": "large (from 96² pixels)"}
UNCOMPARED = {"OUTPUT_DIR", "VERSION"}  # settings that always differ, or say nothing


def render(runs: Sequence[Run], threshold: float) -> str:
    """The page as HTML; all text of the runs is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score}
    environment.globals |= {
        "SIZES": SIZES,
        "KINDS": KINDS,
        "LOWEST": LOWEST,
        "precision_charts": precision_charts,
        "confusion_tables": confusion_tables,
        "mean_cost": mean_cost,
        "training_charts": training_charts,
        "reliability_chart": reliability_chart,
        "share": lambda value, of: 0 if not of or not math.isfinite(value) else min(1.0, max(0.0, value / of)),
    }
    labels = {name: label for run in runs for name, label in run.summary.labels.items()}
    return environment.get_template("report.html").render(
        runs=runs,
        labels=labels,
        sources={run.summary.source for run in runs},
        threshold=threshold,
        settings=setting_differences([run.settings for run in runs]),
    )


def precision_charts(run: Run) -> list[tuple[str, Markup]]:
    """(class, chart) for each class: precision by recall on the source and in the mean of the unseen splits."""
    source = run.splits[run.summary.source].curves if run.has_source else None
    unseen = _mean([run.splits[name].curves for name in run.unseen])
    charts = []
    for number, name in enumerate(next(iter(run.splits.values())).classes if run.splits else ()):
        lines = [] if source is None else [Line("source", RECALLS, source[number], 0)]
        lines += [] if unseen is None else [Line("mean of unseen", RECALLS, unseen[number], 1, dashed=True)]
        charts.append(
            (name, line_chart(f"{name}: precision by recall", lines, Axis("recall", 0, 1), Axis("precision", 0, 1)))
        )
    return charts


def confusion_tables(run: Run) -> list[tuple[str, Sequence[str], np.ndarray]]:
    """(title, classes, matrix) of the source, and of all unseen splits together."""
    groups = {"source": [run.summary.source] if run.has_source else [], "all unseen": run.unseen}
    tables = []
    for title, names in groups.items():
        if names:
            splits = [run.splits[name] for name in names]
            tables.append((title, splits[0].classes, np.sum([split.confusion for split in splits], axis=0)))
    return tables


def mean_cost(run: Run) -> dict[str, float]:
    """Kind of error -> AP50 that repairing it adds, in the mean of the unseen splits; empty without any."""
    costs = [run.splits[name].errors.cost for name in run.unseen]
    return {kind: float(np.mean([cost[kind] for cost in costs])) for kind in costs[0]} if costs else {}


def training_charts(runs: Sequence[Run]) -> list[tuple[str, Markup, list[tuple[str, int]]]]:
    """(title, chart, legend of labels and colors) of losses, learning rate and scores in the course of training."""
    trained = [(number, run) for number, run in enumerate(runs) if run.training]
    wanted = [("total loss", "total_loss"), ("learning rate", "lr")]
    charts = []
    for title, key in wanted:
        lines = [_course(run.name, run.training, key, number + 1) for number, run in trained]
        charts.append((title, lines))
    for _, run in trained:
        losses = sorted({key for line in run.training for key in line if key.startswith("loss")})
        charts.append((f"{run.name}: losses", [_course(key, run.training, key, n) for n, key in enumerate(losses)]))
        scores = [(label, f"{name}/voc/AP50") for name, label in run.summary.labels.items()]
        lines = [_course(label, run.training, key, n) for n, (label, key) in enumerate(scores)]
        charts.append((f"{run.name}: VOC AP50", [line for line in lines if len(line.x) > 1]))
    return [(title, _course_chart(title, lines), [(line.label, line.color) for line in lines])
            for title, all_lines in charts if (lines := [line for line in all_lines if len(line.x)])]  # fmt: skip


def setting_differences(settings: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """(key, value of each run) where runs differ; of a single run, (key, [default, value]) where it differs from it."""
    alone = len(settings) == 1
    columns = [flatten(default_cfg()), *settings] if alone else list(settings)
    if not all(settings):
        return []
    keys = sorted(set(settings[0] if alone else {key for column in columns for key in column}) - UNCOMPARED)
    rows = [(key, [_text(column.get(key, "not set")) for column in columns]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _text(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _course(label: str, training: Iterable[Mapping], key: str, color: int) -> Line:
    points = [(line["iteration"], line[key]) for line in training if isinstance(line.get(key), (int, float))]
    return Line(label, [x for x, _ in points], [float(y) for _, y in points], color)


def _course_chart(title: str, lines: Sequence[Line]) -> Markup:
    x = range_axis("iteration", [x for line in lines for x in line.x], low=0)
    return line_chart(title, lines, x, range_axis("", [y for line in lines for y in line.y], low=0))


def _mean(curves: Sequence[np.ndarray]) -> np.ndarray | None:
    """The mean of arrays of one shape, leaving NaN out; NaN where all are, None of none."""
    if not curves:
        return None
    known = np.sum([~np.isnan(curve) for curve in curves], axis=0)
    total = np.nansum(curves, axis=0)
    return np.divide(total, known, out=np.full(total.shape, np.nan), where=known > 0)


def _score(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
