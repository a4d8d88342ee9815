"""What a set of per-split scores says about weather that training has not seen.

Two figures: the mean score over the unseen splits, and the relative performance under shift, which is that mean over
the source's score. They carry over to weathers what Michaelis et al. measure for corruptions, there named mPC and rPC
("Benchmarking Robustness in Object Detection: Autonomous Driving when Winter is Coming", arXiv 1907.07484).
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from soma_det.evaluation.chart import draw_domain_chart
from soma_det.utils.files import atomic_path, write_text

RESULTS_FILE, TABLES_FILE, CHART_FILE = "results.json", "results.md", "results.png"
COCO_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TIMES_OF_DAY = ("daytime", "night", "dusk", "dawn")

logger = logging.getLogger(__name__)

NOTES = """\
- VOC AP50: mean over classes of PASCAL VOC 2007's 11-point average precision at IoU 0.5, the benchmark's mAP. The other
  columns are COCO's. All are from 0 to 100.
- A class without ground truth in a split has no AP there ("-") and is left out of that split's mean.
- Mean of unseen: over the unseen splits, each with the same weight. Relative performance under shift: that mean as a
  percentage of the source's score.
- Scores of classes with few boxes (the number in parentheses) are noisy.
"""


@dataclass(frozen=True)
class MetricSummary:
    """One metric over all splits, 0 to 100.

    Attributes:
        source: score on the source split; None if it was not tested.
        unseen: score on every other split, in the order tested.
        mean_unseen: the mean of those that have a score; None if none has.
        relative: ``mean_unseen`` in percent of ``source``; None without one of them, or if ``source`` is 0.
    """

    source: float | None
    unseen: dict[str, float]
    mean_unseen: float | None
    relative: float | None


@dataclass(frozen=True)
class WeatherSummary:
    """The scores of a test run, brought together.

    Attributes:
        source: name of the source split, as configured; "" if none was.
        voc_ap50: the main metric, VOC's 11-point AP at IoU 0.5, mean over classes.
        coco_ap: COCO's AP.
        results: the evaluators' own results: split -> "bbox", "voc", "boxes", "images".
    """

    source: str
    voc_ap50: MetricSummary
    coco_ap: MetricSummary
    results: dict[str, dict]

    def remark(self) -> str:
        """Why some of the summary is missing, in a sentence; "" if nothing is."""
        if not self.source:
            return "No source split is configured (DATASETS.SOURCE_TEST), so all splits count as unseen."
        if self.source not in self.results:
            return f"The source split {self.source} was not tested, so there is no relative performance."
        if not self.voc_ap50.unseen:
            return "Only the source split was tested, so there is nothing to say about unseen weather."
        return ""


def summarize(results: Mapping[str, Mapping], source: str) -> WeatherSummary:
    """Bring the scores of several splits together.

    Args:
        results: split name -> what :meth:`WeatherEvaluator.evaluate` returned for it.
        source: the split whose weather training has seen; "" or a split that is not in ``results`` leaves the
            figures empty that need it.

    Raises:
        ValueError: ``results`` is empty, or not keyed by the splits' names.
    """
    wrong = [name for name, metrics in results.items() if not isinstance(metrics, Mapping) or "voc" not in metrics]
    if not results or wrong:
        raise ValueError(
            f"Need {{split name: {{'bbox': .., 'voc': ..}}}}, got the keys {list(results)}. For a single test set, "
            "Detectron2's DefaultTrainer.test leaves the name out; put it back."
        )
    return WeatherSummary(
        source=source,
        voc_ap50=_summarize_metric({name: r["voc"]["AP50"] for name, r in results.items()}, source),
        coco_ap=_summarize_metric({name: r["bbox"]["AP"] for name, r in results.items()}, source),
        results={name: dict(r) for name, r in results.items()},
    )


def format_table(summary: WeatherSummary, tablefmt: str = "simple") -> str:
    """The two tables, scores per split and VOC AP50 per class, as text for a log or, with "github", Markdown."""
    heading = "## " if tablefmt == "github" else ""
    parts = [
        f"{heading}Average precision per split",
        _split_table(summary, tablefmt),
        summary.remark(),
        f"{heading}VOC AP50 per class (number of boxes)",
        _class_table(summary, tablefmt),
    ]
    return "\n\n".join(part for part in parts if part)


def write_results(
    output_dir: str | os.PathLike,
    results: Mapping[str, Mapping],
    source: str,
    metadata: Mapping[str, str | int | float] | None = None,
) -> WeatherSummary:
    """Write results.json (all numbers), results.md (tables) and results.png (chart) into a folder, each atomically.

    Args:
        results, source: as for :func:`summarize`.
        metadata: what the run was, such as config file, weights, iteration and date; written as it is.
    """
    summary, metadata = summarize(results, source), dict(metadata or {})
    folder = Path(output_dir)
    content = {"metadata": metadata, "source": source, "results": summary.results}
    content["summary"] = {"voc_AP50": asdict(summary.voc_ap50), "coco_AP": asdict(summary.coco_ap)}
    write_text(folder / RESULTS_FILE, json.dumps(_nan_to_none(content), indent=2, allow_nan=False) + "\n")
    write_text(folder / TABLES_FILE, _markdown(summary, metadata))
    with atomic_path(folder / CHART_FILE) as temporary:
        scores = {label: summary.results[name]["voc"]["AP50"] for name, label in split_labels(summary).items()}
        draw_domain_chart(scores, split_labels(summary).get(source), temporary)
    return summary


def report(
    results: Mapping[str, Mapping],
    source: str,
    output_dir: str | os.PathLike,
    metadata: Mapping[str, str | int | float] | None = None,
) -> WeatherSummary:
    """Write the result files, as :func:`write_results`, and log the tables and where the files are."""
    summary = write_results(output_dir, results, source, metadata)
    logger.info(f"Results, also in {Path(output_dir) / TABLES_FILE}:\n{format_table(summary)}")
    return summary


def load_results(path: str | os.PathLike) -> dict:
    """Read a results.json, or the one in a folder.

    Returns:
        "metadata", "source", "results" (as :func:`summarize` takes them, missing scores being NaN again) and "summary".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a results file of this project.
    """
    path = Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"metadata", "source", "results"} <= content.keys():
        raise ValueError(f"{path} is not a results file: it lacks metadata, source or results.")
    for split in content["results"].values():
        for task in ("bbox", "voc"):
            split[task] = {k: float("nan") if v is None else v for k, v in split[task].items()}
    return content


def split_labels(summary: WeatherSummary) -> dict[str, str]:
    """Split names -> short names for people: without the prefix that all share and the name of the list."""
    return shorten_names(list(summary.results))


def shorten_names(names: Sequence[str]) -> dict[str, str]:
    """``<prefix>_<domain>_<list>`` -> ``<domain>`` with spaces, if the names stay apart; else the names themselves.

    The prefix is what all names share, but ends before a time of day, which belongs to the domain.
    """
    words = {name: name.split("_") for name in names}
    for name in names:
        if words[name][-1] in ("train", "val", "test") and len(words[name]) > 1:
            words[name] = words[name][:-1]
    start = 0
    while len(names) > 1 and all(len(w) > start + 1 for w in words.values()):
        shared = {w[start] for w in words.values()}
        if len(shared) > 1 or shared & set(TIMES_OF_DAY):
            break
        start += 1
    labels = {name: " ".join(w[start:]) for name, w in words.items()}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in names}


def _summarize_metric(scores: dict[str, float], source: str) -> MetricSummary:
    unseen = {name: score for name, score in scores.items() if name != source}
    scored = [score for score in unseen.values() if not math.isnan(score)]
    mean = sum(scored) / len(scored) if scored else None
    score = scores.get(source)
    return MetricSummary(score, unseen, mean, 100 * mean / score if mean is not None and score else None)


def _split_table(summary: WeatherSummary, tablefmt: str) -> str:
    rows = []
    for name, label in split_labels(summary).items():
        result = summary.results[name]
        role = "source" if name == summary.source else "unseen"
        scores = [result["voc"]["AP50"], *(result["bbox"][k] for k in COCO_COLUMNS)]
        counts = [f"{n:,}" for n in (result["images"]["count"], sum(result["boxes"].values()))]
        rows.append([label, role, *counts, *map(_score, scores)])
    blank = [""] * (len(COCO_COLUMNS) - 1)
    means = [summary.voc_ap50.mean_unseen, summary.coco_ap.mean_unseen]
    relative = [summary.voc_ap50.relative, summary.coco_ap.relative]
    rows.append(["mean of unseen", "", "", "", *map(_score, means), *blank])
    rows.append(["relative performance under shift", "", "", "", *(_score(r, unit=" %") for r in relative), *blank])
    headers = ["split", "", "images", "boxes", "VOC AP50", *COCO_COLUMNS]
    align = ["left", "left"] + ["right"] * (len(headers) - 2)
    return tabulate(rows, headers, tablefmt=tablefmt, colalign=align, disable_numparse=True)


def _class_table(summary: WeatherSummary, tablefmt: str) -> str:
    classes = list(dict.fromkeys(c for result in summary.results.values() for c in result["boxes"]))
    rows = []
    for name, label in split_labels(summary).items():
        voc, boxes = summary.results[name]["voc"], summary.results[name]["boxes"]
        cells = [f"{_score(voc.get(f'AP50-{c}'))} ({boxes.get(c, 0):,})" for c in classes]
        rows.append([label, *cells, _score(voc["AP50"])])
    align = ["left"] + ["right"] * (len(classes) + 1)
    return tabulate(rows, ["split", *classes, "mean"], tablefmt=tablefmt, colalign=align, disable_numparse=True)


def _markdown(summary: WeatherSummary, metadata: Mapping) -> str:
    lines = [f"- {key}: {value}" for key, value in metadata.items()]
    lines += [f"- {label}: `{name}`" for name, label in split_labels(summary).items() if name != label]
    parts = ["# Object detection in unseen weather", "\n".join(lines), format_table(summary, "github")]
    parts += [f"![VOC AP50 per split]({CHART_FILE})", "## How to read this", NOTES]
    return "\n\n".join(part for part in parts if part)


def _score(value: float | None, unit: str = "") -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}{unit}"


def _nan_to_none(value):
    """JSON has no NaN: a score that does not exist is null."""
    if isinstance(value, Mapping):
        return {k: _nan_to_none(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
