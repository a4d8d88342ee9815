"""The tables of a report."""

import math
from typing import Any

import numpy as np

from adapter_comparison.scores import MAIN
from adapter_comparison.statistics import CHOOSING, HELD_OUT, LEVEL, RELATIVE, TARGET, UNSEEN, Difference, Spread

Content = dict[str, Any]  # what adapter_comparison.scores.collect returns
Table = dict[str, Any]  # arguments of tabulate


def build_tables(content: Content) -> dict[str, Table]:
    """Heading -> table."""
    metric = metric_name(content)
    tables = {f"{metric}, mean ± standard deviation over seeds": _score_table(content, "voc_AP50")}
    if content["differences"]:
        heading = f"{metric} minus that of {content['reference']}, with {LEVEL} % interval"
        tables[heading] = _difference_table(content)
    if content["validation"]:
        tables[_choice_heading(content)] = _choice_table(content)
    tables["What it costs"] = _cost_table(content)
    tables[f"VOC AP50 per class, mean over the {content['headline']} splits and seeds (number of boxes there)"] = (
        _class_table(content)
    )
    tables[metric.replace("VOC AP50", "COCO AP") + ", mean ± standard deviation over seeds"] = _score_table(
        content, "coco_AP"
    )
    return tables


def metric_name(content: Content) -> str:
    """The main metric, with the classes that it is averaged over if they were chosen."""
    return "VOC AP50" + (f" of {', '.join(content['classes'])}" if content["classes"] else "")


def _table(headers: list[str], rows: list[list[str]]) -> Table:
    align = ["left"] + ["right"] * (len(headers) - 1)
    return {"tabular_data": rows, "headers": headers, "colalign": align, "disable_numparse": True}


def _score_table(content: Content, metric: str) -> Table:
    columns = _columns(content) | {UNSEEN: UNSEEN}
    headers = ["configuration", "seeds", *columns.values(), "relative"]
    rows = []
    for name, scores in content["scores"][metric].items():
        cells = [_plus_minus(scores[key]) for key in columns]
        rows.append([name, str(len(scores[UNSEEN].values)), *cells, _plus_minus(scores[RELATIVE], " %")])
    return _table(headers, rows)


def _difference_table(content: Content) -> Table:
    columns, headline = _columns(content), content["headline"]
    if headline == TARGET:
        columns[UNSEEN] = UNSEEN
    headers = ["configuration", headline, "seeds better", *columns.values()]
    rows = []
    for name, of in content["differences"].items():
        per_seed = of[headline].values.values()
        better = f"{sum(d > 0 for d in per_seed)} of {len(per_seed)}"
        rows.append([name, _with_interval(of[headline]), better, *(_with_interval(of[key]) for key in columns)])
    return _table(headers, rows)


def _columns(content: Content) -> dict[str, str]:
    """Split -> its heading: the source, then targets, then the others."""
    labels, source, targets = content["labels"], content["source"], content["targets"]
    roles = {**dict.fromkeys(targets, "target"), source: "source"}
    order = sorted(labels, key=lambda split: (split != source, split not in targets))
    return {split: f"{labels[split]} ({roles[split]})" if split in roles else labels[split] for split in order}


def _choice_heading(content: Content) -> str:
    source, validation = (content["labels"][content[key]] for key in ("source", "validation"))
    return f"{metric_name(content)}, settings chosen by {source} and {validation} and confirmed on the rest"


def _choice_table(content: Content) -> Table:
    """Sorted by the mean over the source and the validation weather; beside it the mean over all other weathers."""
    headers = ["configuration", "chosen by", "held out", f"held out, minus {content['reference']}"]
    scores, differences = content["scores"][MAIN], content["differences"]
    rows = []
    for name in sorted(scores, key=lambda name: -np.nan_to_num(scores[name][CHOOSING].mean)):
        difference = _with_interval(differences[name][HELD_OUT]) if name in differences else ""
        rows.append([name, _plus_minus(scores[name][CHOOSING]), _plus_minus(scores[name][HELD_OUT]), difference])
    return _table(headers, rows)


def _cost_table(content: Content) -> Table:
    headers = ["configuration", "trained in the backbone", "trained in all", "s / iteration", "peak memory, MiB"]
    rows = []
    for name, of in content["configurations"].items():
        counts = [f"{of['trainable_parameters'][key]:,}" for key in ("adapter", "all")]
        time, peak = of["seconds_per_iteration"], of["peak_memory_mb"]
        rows.append([name, *counts, "-" if time is None else f"{time:.3f}", "-" if peak is None else f"{peak:,.0f}"])
    return _table(headers, rows)


def _class_table(content: Content) -> Table:
    boxes: dict[str, int] = {}
    counted = content["targets"] or [split for split in content["labels"] if split != content["source"]]
    for split, of_split in content["boxes"].items():
        for name, number in of_split.items():
            boxes[name] = boxes.get(name, 0) + (number if split in counted else 0)
    headers = ["configuration", *(f"{name} ({number:,})" for name, number in boxes.items())]
    return _table(headers, [[n, *(_plus_minus(of[c]) for c in boxes)] for n, of in content["per_class"].items()])


def _plus_minus(of: Spread, unit: str = "") -> str:
    if math.isnan(of.mean):
        return "-"
    return f"{of.mean:.1f}" + ("" if math.isnan(of.sd) else f" ± {of.sd:.1f}") + unit


def _with_interval(of: Difference) -> str:
    if math.isnan(of.mean):
        return "-"
    low, high = of.interval
    return f"{of.mean:+.1f}" + ("" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")
