"""What the scores of several splits say about weather that training has not seen.

The mean score over the unseen splits, and the relative performance under shift, which is that mean over the source's
score, are what Michaelis et al. measure for corruptions as mPC and rPC ("Benchmarking Robustness in Object Detection:
Autonomous Driving when Winter is Coming", arXiv 1907.07484).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from detectron2.data import MetadataCatalog


@dataclass(frozen=True)
class MetricSummary:
    """One metric over all splits, 0 to 100.

    Attributes:
        source: score on the source split; None if it was not tested.
        unseen: score on every other split that is no target, in the order tested.
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
        voc_ap50, coco_ap: the mean over classes of VOC's 11-point AP at IoU 0.5, the main metric, and of COCO's AP.
        results: the evaluators' own results: split -> "bbox", "voc", "boxes", "images".
        labels: split -> its name for people, see :func:`domain_labels`.
        targets: splits of domains whose images training has seen without labels.
    """

    source: str
    voc_ap50: MetricSummary
    coco_ap: MetricSummary
    results: dict[str, dict]
    labels: dict[str, str]
    targets: tuple[str, ...] = ()

    def role(self, split: str) -> str:
        """What training has seen of a split's domain: "source" all, "target" images alone, "unseen" nothing."""
        return "source" if split == self.source else "target" if split in self.targets else "unseen"

    def remark(self) -> str:
        """Why some of the summary is missing, in a sentence; "" if nothing is."""
        if not self.source:
            return "No source split is configured (DATASETS.SOURCE_TEST), so all splits count as unseen."
        if self.source not in self.results:
            return f"The source split {self.source} was not tested, so there is no relative performance."
        if not self.voc_ap50.unseen and self.targets:
            return "No unseen split was tested, so there is nothing to say about unseen weather."
        if not self.voc_ap50.unseen:
            return "Only the source split was tested, so there is nothing to say about unseen weather."
        return ""


def summarize(
    results: Mapping[str, Mapping],
    source: str,
    labels: Mapping[str, str] | None = None,
    targets: Collection[str] = (),
) -> WeatherSummary:
    """Bring the scores of several splits together.

    Args:
        results: split name -> what the evaluators of :func:`~soma_det.evaluation.build_evaluator` returned for it.
        source: the split whose weather training has seen; figures that need it stay empty where it has no results.
        labels: split name -> its name in tables and charts, by default the same.
        targets: splits of domains that training has seen without labels; they are not unseen.

    Raises:
        ValueError: ``results`` is empty, or not keyed by the splits' names.
    """
    wrong = [name for name, metrics in results.items() if not isinstance(metrics, Mapping) or "voc" not in metrics]
    if not results or wrong:
        raise ValueError(
            f"Need {{split name: {{'bbox': .., 'voc': ..}}}}, got the keys {list(results)}. For a single test set, "
            "Detectron2's DefaultTrainer.test leaves the name out; put it back."
        )
    voc_ap50 = _summarize_metric({name: r["voc"]["AP50"] for name, r in results.items()}, source, targets)
    coco_ap = _summarize_metric({name: r["bbox"]["AP"] for name, r in results.items()}, source, targets)
    labels = {name: (labels or {}).get(name, name) for name in results}
    return WeatherSummary(
        source, voc_ap50, coco_ap, {name: dict(r) for name, r in results.items()}, labels, tuple(targets)
    )


def domain_labels(dataset_names: Iterable[str]) -> dict[str, str]:
    """Registered splits -> names for people: the domain in their metadata, else the name of the data set.

    Underscores become spaces. Where two share a domain, the split of the metadata (train, test) follows it.
    """
    metadata = {name: MetadataCatalog.get(name) for name in dataset_names}
    domains = {name: m.get("domain", name) for name, m in metadata.items()}
    times = Counter(domains.values())
    labels = {name: d if times[d] == 1 else f"{d} {metadata[name].get('split', name)}" for name, d in domains.items()}
    labels = {name: label.replace("_", " ") for name, label in labels.items()}
    unique = len(set(labels.values())) == len(labels)  # not so for the same domain and split under two prefixes
    return labels if unique else {name: name for name in labels}


def target_splits(tested: Iterable[str], targets: Iterable[str]) -> tuple[str, ...]:
    """Those of the tested splits whose domain is that of a target data set (UDA.TARGET)."""
    domains = {MetadataCatalog.get(name).get("domain", name) for name in targets}
    return tuple(name for name in tested if MetadataCatalog.get(name).get("domain", name) in domains)


def _summarize_metric(scores: dict[str, float], source: str, targets: Collection[str]) -> MetricSummary:
    unseen = {name: score for name, score in scores.items() if name != source and name not in targets}
    scored = [score for score in unseen.values() if not math.isnan(score)]
    mean = sum(scored) / len(scored) if scored else None
    score = scores.get(source)
    return MetricSummary(score, unseen, mean, 100 * mean / score if mean is not None and score else None)
