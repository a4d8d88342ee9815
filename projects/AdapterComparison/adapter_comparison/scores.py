"""All numbers of a report, computed from finished runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from adapter_comparison.plan import Comparison
from adapter_comparison.power import describe_power, pooled_noise
from adapter_comparison.runs import Finished
from adapter_comparison.statistics import (
    TARGET,
    UNSEEN,
    Difference,
    Spread,
    paired_difference,
    spread,
    summarize_splits,
)
from soma_det.evaluation.summary import domain_labels, target_splits

METRICS = {"voc_AP50": ("voc", "AP50"), "coco_AP": ("bbox", "AP")}
MAIN = "voc_AP50"


class Roles(NamedTuple):
    """What the splits are: the arguments of :func:`summarize_splits` after the scores."""

    source: str
    validation: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Configured:
    """All finished runs of one configuration, by seed."""

    name: str
    runs: dict[int, Finished]

    def first(self) -> Finished:
        """One run, for what does not depend on the seed."""
        return next(iter(self.runs.values()))


def collect(comparison: Comparison, finished: Sequence[Finished]) -> dict[str, Any]:
    """All numbers of the report, as results.json has them.

    Args:
        finished: at least one run.

    Raises:
        ValueError: the runs were tested on different images or boxes.
    """
    _require_same_test_data(finished)
    some, configured = finished[0], _by_configuration(finished)
    source, splits = some.run.cfg.DATASETS.SOURCE_TEST, list(some.results)
    order = [c.name for c in comparison.configurations if c.name in configured]
    targets = target_splits(splits, some.run.cfg.UDA.TARGET)
    headline = TARGET if targets else UNSEEN
    roles = Roles(source, comparison.validation, targets)
    values = {metric: {n: _values(configured[n], metric, comparison, roles) for n in order} for metric in METRICS}
    differences = _differences(comparison, configured, values[MAIN], roles)
    noise = pooled_noise(of[headline] for of in differences.values())
    return {
        "source": source,
        "targets": list(targets),
        "headline": headline,
        "labels": domain_labels(splits),
        "seeds": list(comparison.seeds),
        "classes": list(comparison.classes),
        "reference": comparison.reference,
        "validation": comparison.validation,
        "images": {split: some.results[split]["images"]["count"] for split in splits},
        "boxes": {split: some.results[split]["boxes"] for split in splits},
        "configurations": {name: _describe(configured[name]) for name in order},
        "scores": {m: {n: {k: spread(v) for k, v in values[m][n].items()} for n in order} for m in METRICS},
        "differences": differences,
        "noise": None if noise is None else vars(noise),
        "power": describe_power(noise, min(len(one.runs) for one in configured.values()), headline),
        "per_class": {name: _per_class(configured[name], roles, headline) for name in order},
    }


def split_score(result: Mapping[str, Any], metric: str, classes: Sequence[str] = ()) -> float:
    """A metric on one split: the mean over ``classes``, or over all if empty; NaN where none has a score.

    Args:
        result: what the evaluator returned for the split.
        metric: a key of METRICS.
    """
    task, key = METRICS[metric]
    if not classes:
        return result[task][key]
    known = [ap for ap in (result[task][f"{key}-{name}"] for name in classes) if not math.isnan(ap)]
    return sum(known) / len(known) if known else float("nan")


def _by_configuration(finished: Sequence[Finished]) -> dict[str, Configured]:
    configured: dict[str, Configured] = {}
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
                    f"{one.run} and {first.run} were tested on different data in {split}: delete the older one's "
                    "folder to train it again, or use another --output."
                )


def _values(configured: Configured, metric: str, comparison: Comparison, roles: Roles) -> dict[str, dict[int, float]]:
    """Quantity of :func:`summarize_splits` -> seed -> score."""
    by_seed = {}
    for seed, one in configured.runs.items():
        scores = {split: split_score(result, metric, comparison.classes) for split, result in one.results.items()}
        by_seed[seed] = summarize_splits(scores, *roles)
    quantities = next(iter(by_seed.values()))
    return {quantity: {seed: float(by_seed[seed][quantity]) for seed in by_seed} for quantity in quantities}


def _resampled_values(configured: Configured, comparison: Comparison, roles: Roles) -> dict[str, dict[int, np.ndarray]]:
    """As :func:`_values`, with (resamples,) scores for each score."""
    by_seed = {}
    for seed, one in configured.runs.items():
        names = list(one.results[roles.source]["boxes"])
        columns = [names.index(name) for name in comparison.classes] or list(range(len(names)))
        scores = {split: _class_mean(one.resampled[split][:, columns]) for split in one.results}
        by_seed[seed] = summarize_splits(scores, *roles)
    quantities = next(iter(by_seed.values()))
    return {quantity: {seed: by_seed[seed][quantity] for seed in by_seed} for quantity in quantities}


def _class_mean(scores: np.ndarray) -> np.ndarray:
    """(resamples, classes) -> (resamples,), the mean over the classes with a score; NaN without any."""
    known = ~np.isnan(scores)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, scores, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _differences(
    comparison: Comparison, configured: dict[str, Configured], values: dict[str, dict], roles: Roles
) -> dict[str, dict[str, Difference]]:
    """Configuration -> quantity -> difference from the reference; empty until the reference has a finished run."""
    if comparison.reference not in configured:
        return {}
    resampled = {name: _resampled_values(one, comparison, roles) for name, one in configured.items()}
    base, base_resampled = values[comparison.reference], resampled[comparison.reference]
    return {
        name: {q: paired_difference(v, base[q], resampled[name][q], base_resampled[q]) for q, v in values[name].items()}
        for name in values
        if name != comparison.reference
    }


def _describe(configured: Configured) -> dict[str, Any]:
    """Settings and costs of one configuration."""
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


def _per_class(configured: Configured, roles: Roles, headline: str) -> dict[str, Spread]:
    """Class -> its VOC AP50, the mean over the unseen splits, or the targets, that have boxes of it."""
    names = list(configured.first().results[roles.source]["boxes"])
    values = {name: {} for name in names}
    for seed, one in configured.runs.items():
        for name in names:
            scores = {split: result["voc"][f"AP50-{name}"] for split, result in one.results.items()}
            values[name][seed] = float(summarize_splits(scores, *roles)[headline])
    return {name: spread(of_class) for name, of_class in values.items()}
