"""The files and tables that report the scores of a test run."""

import json
import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from soma_det.evaluation.chart import draw_domain_chart
from soma_det.evaluation.summary import WeatherSummary, domain_labels, summarize
from soma_det.utils.files import atomic_path, write_text

RESULTS_FILE, TABLES_FILE, CHART_FILE = "results.json", "results.md", "results.png"
COCO_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

logger = logging.getLogger(__name__)

NOTES = """\
- VOC AP50: mean over classes of PASCAL VOC 2007's 11-point average precision at IoU 0.5, the benchmark's mAP. The other
  columns are COCO's. All are from 0 to 100.
- A class without ground truth in a split has no AP there ("-") and is left out of that split's mean.
- Target: training has seen images of this domain, without their labels. It is not unseen.
- Mean of unseen: over the unseen splits, each with the same weight. Relative performance under shift: that mean as a
  percentage of the source's score.
- Scores of classes with few boxes (the number in parentheses) are noisy.
"""


def format_table(summary: WeatherSummary, tablefmt: str = "simple") -> str:
    """The two tables, scores per split and VOC AP50 per class, as text for a log or, with "github", Markdown."""
    heading = "## " if tablefmt == "github" else ""
    splits = [f"{heading}Average precision per split", _split_table(summary, tablefmt), summary.remark()]
    classes = [f"{heading}VOC AP50 per class (number of boxes)", _class_table(summary, tablefmt)]
    return "\n\n".join(filter(None, splits + classes))


def write_results(
    output_dir: str | os.PathLike,
    results: Mapping[str, Mapping],
    source: str,
    labels: Mapping[str, str] | None = None,
    metadata: Mapping[str, str | int | float] | None = None,
    targets: Collection[str] = (),
) -> WeatherSummary:
    """Write results.json (all numbers), results.md (tables) and results.png (chart) into a folder, each atomically.

    Args:
        results, source, labels, targets: as for :func:`~soma_det.evaluation.summary.summarize`.
        metadata: what the run was, such as config file, weights, iteration and date; written as it is.
    """
    summary, metadata = summarize(results, source, labels, targets), dict(metadata or {})
    folder = Path(output_dir)
    content = {
        "metadata": metadata,
        "source": source,
        "labels": summary.labels,
        "targets": summary.targets,
        "results": summary.results,
        "summary": {"voc_AP50": asdict(summary.voc_ap50), "coco_AP": asdict(summary.coco_ap)},
    }
    write_text(folder / RESULTS_FILE, json.dumps(_nan_to_none(content), indent=2, allow_nan=False) + "\n")
    write_text(folder / TABLES_FILE, _markdown(summary, metadata))
    with atomic_path(folder / CHART_FILE) as temporary:
        scores = {label: summary.results[name]["voc"]["AP50"] for name, label in summary.labels.items()}
        seen = [summary.labels[name] for name in summary.targets]
        draw_domain_chart(scores, summary.labels.get(source), temporary, seen)
    return summary


def report(
    results: Mapping[str, Mapping],
    source: str,
    output_dir: str | os.PathLike,
    metadata: Mapping[str, str | int | float] | None = None,
    targets: Collection[str] = (),
) -> WeatherSummary:
    """Write the result files of registered splits, as :func:`write_results`, and log the tables and where they are."""
    summary = write_results(output_dir, results, source, domain_labels(results), metadata, targets)
    logger.info(f"Results, also in {Path(output_dir) / TABLES_FILE}:\n{format_table(summary)}")
    return summary


def load_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read a results.json, or the one in a folder.

    Returns:
        "metadata", "summary" and, as :func:`~soma_det.evaluation.summary.summarize` takes them, "source", "labels",
        "targets" and "results", missing scores being NaN again. Files of soma_det 0.1 lack labels and get the splits'
        names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a results file of this project.
    """
    path = Path(path, RESULTS_FILE) if os.path.isdir(path) else Path(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"metadata", "source", "results"} <= content.keys():
        raise ValueError(f"{path} is not a results file: it lacks metadata, source or results.")
    for split in content["results"].values():
        for task in ("bbox", "voc"):
            split[task] = {k: float("nan") if v is None else v for k, v in split[task].items()}
    content.setdefault("labels", {name: name for name in content["results"]})
    content.setdefault("targets", [])
    return content


def _split_table(summary: WeatherSummary, tablefmt: str) -> str:
    rows = []
    for name, label in summary.labels.items():
        result = summary.results[name]
        scores = [result["voc"]["AP50"], *(result["bbox"][k] for k in COCO_COLUMNS)]
        counts = [f"{n:,}" for n in (result["images"]["count"], sum(result["boxes"].values()))]
        rows.append([label, summary.role(name), *counts, *map(_score, scores)])
    metrics = (summary.voc_ap50, summary.coco_ap)
    rows.append(["mean of unseen", "", "", "", *(_score(m.mean_unseen) for m in metrics)])
    rows.append(["relative performance under shift", "", "", "", *(_score(m.relative, " %") for m in metrics)])
    return _table(rows, ["split", "", "images", "boxes", "VOC AP50", *COCO_COLUMNS], 2, tablefmt)


def _class_table(summary: WeatherSummary, tablefmt: str) -> str:
    classes = list(dict.fromkeys(c for result in summary.results.values() for c in result["boxes"]))
    rows = []
    for name, label in summary.labels.items():
        voc, boxes = summary.results[name]["voc"], summary.results[name]["boxes"]
        cells = [f"{_score(voc.get(f'AP50-{c}'))} ({boxes.get(c, 0):,})" for c in classes]
        rows.append([label, *cells, _score(voc["AP50"])])
    return _table(rows, ["split", *classes, "mean"], 1, tablefmt)


def _table(rows: list[list[str]], headers: list[str], labels: int, tablefmt: str) -> str:
    """The first ``labels`` columns are aligned at the left, the numbers after them at the right."""
    align = ["left"] * labels + ["right"] * (len(headers) - labels)
    return tabulate(rows, headers, tablefmt=tablefmt, colalign=align, disable_numparse=True)


def _markdown(summary: WeatherSummary, metadata: Mapping) -> str:
    lines = [f"- {key}: {value}" for key, value in metadata.items()]
    lines += [f"- {label}: `{name}`" for name, label in summary.labels.items() if name != label]
    parts = ["# Object detection in unseen weather", "\n".join(lines), format_table(summary, "github")]
    parts += [f"![VOC AP50 per split]({CHART_FILE})", "## How to read this", NOTES]
    return "\n\n".join(filter(None, parts))


def _score(value: float | None, unit: str = "") -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}{unit}"


def _nan_to_none(value: Any) -> Any:
    """JSON has no NaN: a score that does not exist is null."""
    if isinstance(value, Mapping):
        return {k: _nan_to_none(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
