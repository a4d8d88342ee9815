"""Turns finished runs into results.json, results.md and results.png."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from adapter_comparison.chart import draw_comparison_chart
from adapter_comparison.plan import Comparison
from adapter_comparison.runs import LOG_FILE, Finished, Run
from adapter_comparison.statistics import (
    CHOOSING,
    HELD_OUT,
    LEVEL,
    RELATIVE,
    UNSEEN,
    Difference,
    Spread,
    paired_difference,
    spread,
    summarize_splits,
)
from soma_det.evaluation.results import CHART_FILE, RESULTS_FILE, TABLES_FILE
from soma_det.evaluation.summary import domain_labels
from soma_det.utils.files import atomic_path, write_text

METRICS = {"voc_AP50": ("voc", "AP50"), "coco_AP": ("bbox", "AP")}
MAIN = "voc_AP50"
FEW_SEEDS = 10

NOTES = f"""\
- VOC AP50: mean over classes of PASCAL VOC 2007's 11-point average precision at IoU 0.5. COCO AP: the mean over IoU
  0.50 to 0.95. Both from 0 to 100; a class without boxes in a split is left out of its mean.
- Unseen: mean over the unseen splits, each with the same weight. Relative: that mean in percent of the source's score.
- a ± b: mean and sample standard deviation (n - 1) over seeds.
- All runs trained on the source domain alone, for the same number of iterations, on the same images in the same order
  for the same seed, with the same detector on top. **Every score is that of the last iteration's model**: no checkpoint
  was chosen, by its score on unseen domains or by any other.
- Paired differences are taken between runs of the same seed. The {LEVEL} % intervals come from a bootstrap that draws
  both seeds and test images anew, with replacement, the same for both sides; the domains are taken as given. An
  interval that includes 0 shows no difference. Many configurations against one reference: at least one interval in
  twenty excludes 0 by chance alone, with few seeds more, since nothing is corrected for their number.
- Time: median over iterations, then over seeds, as the training itself measured it; other work on the machine shows in
  it. Memory: the highest of all seeds; on a CPU the resident memory of the training process, with Python and its
  libraries and with evaluation, on CUDA the memory that tensors took. Of a run that was interrupted the memory and the
  total time are those of its last part.
"""


@dataclass(frozen=True)
class Configured:
    """All finished runs of one configuration, by seed."""

    name: str
    runs: dict[int, Finished]

    def any(self) -> Finished:
        """One of them, for what does not depend on the seed."""
        return next(iter(self.runs.values()))


def write_report(
    output: str | Path,
    comparison: Comparison,
    finished: Sequence[Finished],
    failures: Mapping[Run, str],
    missing: Sequence[Run],
    metadata: Mapping[str, str | int | float],
) -> str:
    """Write the result files into ``output``, each atomically, and return the tables as text.

    Args:
        finished: at least one run.
        failures: runs that failed -> why.
        missing: runs that are not trained yet, without those that failed.
        metadata: what the comparison was; written as it is.

    Raises:
        ValueError: the runs were tested on different images or boxes.
    """
    _require_same_test_data(finished)
    configured = _by_configuration(finished)
    source = finished[0].run.cfg.DATASETS.SOURCE_TEST
    content = _content(comparison, configured, source)
    problems = {
        "failed": [{"run": str(r), "why": why, "log": str(r.folder / LOG_FILE)} for r, why in failures.items()],
        "missing": [str(run) for run in missing],
    }
    folder = Path(output)
    everything = {"metadata": dict(metadata), **content, **problems}
    write_text(folder / RESULTS_FILE, json.dumps(_plain(everything), indent=2, allow_nan=False) + "\n")
    tables = _tables(content)
    write_text(folder / TABLES_FILE, _markdown(content, tables, problems, metadata))
    with atomic_path(folder / CHART_FILE) as temporary:
        draw_comparison_chart(
            _chart_rows(content),
            content["labels"][source],
            comparison.reference,
            temporary,
            metric=_metric_name(content),
        )
    return "\n\n".join(f"{heading}\n{tabulate(**table, tablefmt='simple')}" for heading, table in tables.items())


def split_score(result: Mapping, metric: str, classes: Sequence[str] = ()) -> float:
    """A metric on one split, from what the evaluator returned: over all classes, or the mean over some; NaN if none."""
    task, key = METRICS[metric]
    if not classes:
        return result[task][key]
    known = [ap for ap in (result[task][f"{key}-{name}"] for name in classes) if not math.isnan(ap)]
    return sum(known) / len(known) if known else float("nan")


def _by_configuration(finished: Sequence[Finished]) -> dict[str, Configured]:
    configured = {}
    for one in finished:
        configured.setdefault(one.run.name, Configured(one.run.name, {})).runs[one.run.seed] = one
    return configured


def _require_same_test_data(finished: Sequence[Finished]) -> None:
    first = finished[0]
    for one in finished:
        for split, result in one.results.items():
            other = first.results.get(split)
            if other is None or (result["boxes"], result["images"]) != (other["boxes"], other["images"]):
                raise ValueError(
                    f"{one.run} and {first.run} were tested on different data in {split}: delete the older one's folder "
                    "to train it anew, or compare into another --output."
                )


def _content(comparison: Comparison, configured: dict[str, Configured], source: str) -> dict:
    """All numbers of the report, as they go into results.json."""
    some = next(iter(configured.values())).any()
    splits = list(some.results)
    order = [c.name for c in comparison.configurations if c.name in configured]
    values = {metric: {n: _values(configured[n], metric, comparison, source) for n in order} for metric in METRICS}
    return {
        "source": source,
        "labels": domain_labels(splits),
        "seeds": list(comparison.seeds),
        "classes": list(comparison.classes),
        "reference": comparison.reference,
        "validation": comparison.validation,
        "images": {split: some.results[split]["images"]["count"] for split in splits},
        "boxes": {split: some.results[split]["boxes"] for split in splits},
        "configurations": {name: _describe(configured[name]) for name in order},
        "scores": {m: {n: {k: spread(v) for k, v in values[m][n].items()} for n in order} for m in METRICS},
        "differences": _differences(comparison, configured, values[MAIN], source),
        "per_class": {name: _per_class(configured[name], source) for name in order},
    }


def _values(configured: Configured, metric: str, comparison: Comparison, source: str) -> dict[str, dict[int, float]]:
    """Split, "unseen" or "relative" -> seed -> score."""
    by_seed = {}
    for seed, one in configured.runs.items():
        scores = {split: split_score(result, metric, comparison.classes) for split, result in one.results.items()}
        by_seed[seed] = summarize_splits(scores, source, comparison.validation)
    quantities = next(iter(by_seed.values()))
    return {quantity: {seed: float(by_seed[seed][quantity]) for seed in by_seed} for quantity in quantities}


def _resampled_values(configured: Configured, comparison: Comparison, source: str) -> dict[str, dict[int, np.ndarray]]:
    """As :func:`_values`, with (resamples,) scores in the place of each."""
    by_seed = {}
    for seed, one in configured.runs.items():
        names = list(one.results[source]["boxes"])
        columns = [names.index(name) for name in comparison.classes] or list(range(len(names)))
        scores = {split: _class_mean(one.resampled[split][:, columns]) for split in one.results}
        by_seed[seed] = summarize_splits(scores, source, comparison.validation)
    quantities = next(iter(by_seed.values()))
    return {quantity: {seed: by_seed[seed][quantity] for seed in by_seed} for quantity in quantities}


def _class_mean(scores: np.ndarray) -> np.ndarray:
    """(resamples, classes) -> (resamples,), without the classes that have no score; NaN where none has."""
    known = ~np.isnan(scores)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, scores, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _differences(
    comparison: Comparison, configured: dict[str, Configured], values: dict[str, dict], source: str
) -> dict[str, dict[str, Difference]]:
    """Configuration -> quantity -> difference from the reference; empty until the reference has a finished run."""
    if comparison.reference not in configured:
        return {}
    resampled = {name: _resampled_values(one, comparison, source) for name, one in configured.items()}
    base, base_resampled = values[comparison.reference], resampled[comparison.reference]
    return {
        name: {q: paired_difference(v, base[q], resampled[name][q], base_resampled[q]) for q, v in values[name].items()}
        for name in values
        if name != comparison.reference
    }


def _describe(configured: Configured) -> dict:
    records = [one.record for one in configured.runs.values()]
    times = [r["seconds_per_iteration"] for r in records if r["seconds_per_iteration"] is not None]
    peaks = [r["peak_memory_mb"] for r in records if r["peak_memory_mb"] is not None]
    return {
        "arguments": [word for word in records[0]["arguments"] if word != "--resume"],
        "seeds": list(configured.runs),
        "trainable_parameters": records[0]["trainable_parameters"],
        "seconds_per_iteration": float(np.median(times)) if times else None,
        "peak_memory_mb": max(peaks) if peaks else None,
        "seconds": [record["seconds"] for record in records],
    }


def _per_class(configured: Configured, source: str) -> dict[str, Spread]:
    """Class -> its VOC AP50, a mean over the unseen splits that have boxes of it."""
    names = list(configured.any().results[source]["boxes"])
    values = {name: {} for name in names}
    for seed, one in configured.runs.items():
        for name in names:
            scores = {split: result["voc"][f"AP50-{name}"] for split, result in one.results.items()}
            values[name][seed] = float(summarize_splits(scores, source)[UNSEEN])
    return {name: spread(of_class) for name, of_class in values.items()}


def _metric_name(content: dict) -> str:
    return "VOC AP50" + (f" of {', '.join(content['classes'])}" if content["classes"] else "")


def _tables(content: dict) -> dict[str, dict]:
    """Heading -> arguments of tabulate."""
    metric = _metric_name(content)
    tables = {f"{metric}, mean ± standard deviation over seeds": _score_table(content, "voc_AP50")}
    if content["differences"]:
        heading = f"{metric} minus that of {content['reference']}, with {LEVEL} % interval"
        tables[heading] = _difference_table(content)
    if content["validation"]:
        tables[_choice_heading(content)] = _choice_table(content)
    tables["What it costs"] = _cost_table(content)
    tables["VOC AP50 per class, mean over the unseen splits and seeds (number of boxes there)"] = _class_table(content)
    tables[metric.replace("VOC AP50", "COCO AP") + ", mean ± standard deviation over seeds"] = _score_table(
        content, "coco_AP"
    )
    return tables


def _table(headers: list[str], rows: list[list[str]]) -> dict:
    align = ["left"] + ["right"] * (len(headers) - 1)
    return {"tabular_data": rows, "headers": headers, "colalign": align, "disable_numparse": True}


def _score_table(content: dict, metric: str) -> dict:
    source, labels = content["source"], content["labels"]
    unseen = [split for split in labels if split != source]
    headers = [
        "configuration",
        "seeds",
        f"{labels[source]} (source)",
        *(labels[s] for s in unseen),
        "unseen",
        "relative",
    ]
    rows = []
    for name, scores in content["scores"][metric].items():
        cells = [_plus_minus(scores[key]) for key in (source, *unseen, UNSEEN)]
        rows.append([name, str(len(scores[UNSEEN].values)), *cells, _plus_minus(scores[RELATIVE], " %")])
    return _table(headers, rows)


def _difference_table(content: dict) -> dict:
    source, labels = content["source"], content["labels"]
    unseen = [split for split in labels if split != source]
    headers = ["configuration", "unseen", "seeds better", labels[source] + " (source)", *(labels[s] for s in unseen)]
    rows = []
    for name, of in content["differences"].items():
        per_seed = of[UNSEEN].values.values()
        better = f"{sum(d > 0 for d in per_seed)} of {len(per_seed)}"
        rows.append([name, _with_interval(of[UNSEEN]), better, *(_with_interval(of[key]) for key in (source, *unseen))])
    return _table(headers, rows)


def _choice_heading(content: dict) -> str:
    source, validation = (content["labels"][content[key]] for key in ("source", "validation"))
    return f"{_metric_name(content)}, settings chosen by {source} and {validation} and confirmed on the rest"


def _choice_table(content: dict) -> dict:
    """The best by the source and one weather first, with what the choice comes to in the other weathers."""
    headers = ["configuration", "chosen by", "held out", f"held out, minus {content['reference']}"]
    scores, differences = content["scores"][MAIN], content["differences"]
    rows = []
    for name in sorted(scores, key=lambda name: -np.nan_to_num(scores[name][CHOOSING].mean)):
        difference = _with_interval(differences[name][HELD_OUT]) if name in differences else ""
        rows.append([name, _plus_minus(scores[name][CHOOSING]), _plus_minus(scores[name][HELD_OUT]), difference])
    return _table(headers, rows)


def _cost_table(content: dict) -> dict:
    headers = ["configuration", "trained in the backbone", "trained in all", "s / iteration", "peak memory, MiB"]
    rows = []
    for name, of in content["configurations"].items():
        counts = [f"{of['trainable_parameters'][key]:,}" for key in ("adapter", "all")]
        time, peak = of["seconds_per_iteration"], of["peak_memory_mb"]
        rows.append([name, *counts, "-" if time is None else f"{time:.3f}", "-" if peak is None else f"{peak:,.0f}"])
    return _table(headers, rows)


def _class_table(content: dict) -> dict:
    boxes = {}
    for split, of_split in content["boxes"].items():
        for name, number in of_split.items():
            boxes[name] = boxes.get(name, 0) + (number if split != content["source"] else 0)
    headers = ["configuration", *(f"{name} ({number:,})" for name, number in boxes.items())]
    return _table(headers, [[n, *(_plus_minus(of[c]) for c in boxes)] for n, of in content["per_class"].items()])


def _chart_rows(content: dict) -> list[dict]:
    """For each configuration what :func:`draw_comparison_chart` wants."""
    source, scores, differences = content["source"], content["scores"][MAIN], content["differences"]
    return [
        {"name": n, "source": s[source], "unseen": s[UNSEEN], "difference": differences.get(n, {}).get(UNSEEN)}
        for n, s in scores.items()
    ]


def _markdown(content: dict, tables: dict[str, dict], problems: dict, metadata: Mapping) -> str:
    labels, source = content["labels"], content["source"]
    lines = [f"- {key}: {value}" for key, value in metadata.items()]
    for split, label in labels.items():
        role = "source" if split == source else "unseen"
        boxes = sum(content["boxes"][split].values())
        lines.append(f"- {label}: `{split}`, {role}, {content['images'][split]:,} images, {boxes:,} boxes")
    parts = ["# Compared in unseen weather", "\n".join(lines), _problems(problems)]
    for index, (heading, table) in enumerate(tables.items()):
        parts += [f"## {heading}", tabulate(**table, tablefmt="github")]
        if index == 0:
            parts.append(f"![{_metric_name(content)} of every configuration]({CHART_FILE})")
    parts += [
        "## How to read this",
        NOTES + _few_seeds(content),
        "## Settings of each configuration",
        _settings(content),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _few_seeds(content: dict) -> str:
    seeds = min(len(of["seeds"]) for of in content["configurations"].values())
    if seeds >= FEW_SEEDS:
        return ""
    return (
        f"- **{seeds} seed{'s are' if seeds > 1 else ' is'} few.** A bootstrap of so few knows little of how trainings "
        "vary, and its intervals are too narrow for that\n  part: take them as a lower bound of the uncertainty, and look at "
        "the single seeds too (dots in the chart, results.json)."
    )


def _problems(problems: dict) -> str:
    lines = [f"- {failure['run']} failed: {failure['why']}" for failure in problems["failed"]]
    if problems["missing"]:
        lines.append(f"- not trained yet: {'; '.join(problems['missing'])}")
    return "\n".join(["**Not complete:**", "", *lines]) if lines else ""


def _settings(content: dict) -> str:
    """The words that only some configurations have, each with its config file."""
    pairs = {name: _pairs(of["arguments"]) for name, of in content["configurations"].items()}
    shared = set.intersection(*(set(p) for p in pairs.values())) if len(pairs) > 1 else set()
    own = {name: [f"{key} {value}" for key, value in p if (key, value) not in shared] for name, p in pairs.items()}
    lines = [f"- {name}: {', '.join(f'`{word}`' for word in words) or 'as the config'}" for name, words in own.items()]
    return "\n".join([f"- all: {', '.join(f'`{key} {value}`' for key, value in sorted(shared))}", *lines])


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(key, value) of the settings; of a key that is set several times the last one, which holds."""
    pairs = dict(zip(arguments[::2], arguments[1::2]))
    return [(key, value) for key, value in pairs.items() if key not in ("SEED", "OUTPUT_DIR")]


def _plus_minus(of: Spread, unit: str = "") -> str:
    if math.isnan(of.mean):
        return "-"
    return f"{of.mean:.1f}" + ("" if math.isnan(of.sd) else f" ± {of.sd:.1f}") + unit


def _with_interval(of: Difference) -> str:
    if math.isnan(of.mean):
        return "-"
    low, high = of.interval
    return f"{of.mean:+.1f}" + ("" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def _plain(value):
    """What json can hold: NaN is null, which stands for a number that does not exist."""
    if isinstance(value, (Spread, Difference)):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
