"""Reads the folder of a run and analyses the detections on every split that it tested."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from reporting.images import Example, draw_examples
from soma_det.config import setup_cfg
from soma_det.config.defaults import flatten
from soma_det.data import register_from_config
from soma_det.evaluation.analysis import Matched, confusion, extreme_images, image_f1, match_boxes, precision_curves
from soma_det.evaluation.calibration import Calibration, calibration
from soma_det.evaluation.detections import DETECTIONS_FILE, load_detections, load_ground_truth
from soma_det.evaluation.error_kinds import ErrorKinds, error_kinds
from soma_det.evaluation.results import load_results
from soma_det.evaluation.summary import WeatherSummary, summarize

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.json"


@dataclass(frozen=True)
class Split:
    """What the detections on a split show.

    Attributes:
        classes: names, in the order of the rows below.
        curves: (classes, 101) precision by recall, see :func:`~soma_det.evaluation.analysis.precision_curves`.
        confusion: (classes + 1, classes + 1), see :func:`~soma_det.evaluation.analysis.confusion`.
        best, worst: drawn images.
    """

    classes: Sequence[str]
    curves: np.ndarray
    confusion: np.ndarray
    errors: ErrorKinds
    calibration: Calibration
    best: list[Example]
    worst: list[Example]


@dataclass
class Run:
    """A run's scores and what could be found out beyond them.

    Attributes:
        settings: key -> value of config.yaml; empty without it.
        training: the lines of metrics.json, one for each iteration written.
        splits: those whose detections and ground truth are there, in the order of the results.
        missing: what is not in the report, and why, in sentences.
    """

    name: str
    folder: Path
    summary: WeatherSummary
    metadata: Mapping[str, object]
    settings: dict[str, object] = field(default_factory=dict)
    training: list[dict] = field(default_factory=list)
    splits: dict[str, Split] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def unseen(self) -> list[str]:
        """The analysed splits of which training has seen nothing."""
        return [name for name in self.splits if self.summary.role(name) == "unseen"]

    @property
    def has_source(self) -> bool:
        """Whether the source split was analysed."""
        return self.summary.source in self.splits


def load_runs(folders: Sequence[Path], opts: Sequence[str], threshold: float, images: int) -> list[Run]:
    """Read and analyse runs.

    Args:
        opts: KEY VALUE words that override each run's config, for example where the data are now.
        threshold: confidence from which detections count in the confusion matrix and for images.
        images: number of best and of worst images to draw for each split.

    Raises:
        FileNotFoundError: a folder has no results.json. All else that is missing is told in :attr:`Run.missing`.
        ValueError: a results.json is of another kind, or ``opts`` is not pairs.
    """
    if len(opts) % 2:
        raise ValueError(f"Overrides come in pairs, KEY VALUE; these are {len(opts)} words: {list(opts)}")
    return [_load(folder, name, opts, threshold, images) for folder, name in zip(folders, _names(folders))]


def read_metrics(path: Path) -> tuple[list[dict], int]:
    """The lines of a metrics.json by rising iteration, and how many cannot be read.

    A resumed run writes some iterations again: the later line counts. A killed run may have left half a line.
    """
    lines: dict[int, dict] = {}
    broken = 0
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            lines[int(line["iteration"])] = line
        except (ValueError, KeyError, TypeError):
            broken += 1
    return [lines[iteration] for iteration in sorted(lines)], broken


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _load(folder: Path, name: str, opts: Sequence[str], threshold: float, images: int) -> Run:
    content = load_results(folder)
    summary = summarize(content["results"], content["source"], content["labels"], content["targets"])
    run = Run(name, folder, summary, content["metadata"])
    _read_training(run)
    if not (folder / CONFIG_FILE).is_file():
        run.missing.append(f"There is no {CONFIG_FILE}: no settings, and no ground truth to compare detections with.")
        return run
    try:
        run.settings = flatten(yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")))
        register_from_config(setup_cfg(str(folder / CONFIG_FILE), opts))
    except (ValueError, OSError, yaml.YAMLError) as error:
        run.missing.append(f"{CONFIG_FILE} cannot be used, so there is no ground truth: {error}")
        return run
    for split in tqdm(summary.labels, desc=name, unit="split"):
        _analyse(run, split, threshold, images)
    return run


def _read_training(run: Run) -> None:
    path = run.folder / METRICS_FILE
    if not path.is_file():
        run.missing.append(f"There is no {METRICS_FILE}, so there are no training curves.")
        return
    run.training, broken = read_metrics(path)
    if broken:
        run.missing.append(f"{METRICS_FILE}: lines that cannot be read were left out ({broken}).")


def _analyse(run: Run, name: str, threshold: float, images: int) -> None:
    label = run.summary.labels[name]
    path = run.folder / "inference" / name / DETECTIONS_FILE
    if not path.is_file():
        run.missing.append(f"{label}: there are no detections, {path}.")
        return
    try:
        truth, found = load_ground_truth(name), load_detections(path, name)
    except KeyError:
        run.missing.append(f"{label}: {CONFIG_FILE} does not register the data set {name}.")
        return
    except (ValueError, OSError) as error:
        run.missing.append(f"{label}: {error}")
        return
    matched = match_boxes(truth, found)
    best, worst, problems = _draw(name, matched, threshold, images)
    if problems:
        run.missing.append(f"{label}: images that cannot be read are not shown ({len(problems)}). {problems[0]}")
    run.splits[name] = Split(
        truth.classes,
        precision_curves(matched),
        confusion(matched, threshold),
        error_kinds(matched),
        calibration(matched.detections.score, matched.hit),
        best,
        worst,
    )


def _draw(name: str, matched: Matched, threshold: float, images: int) -> tuple[list[Example], list[Example], list[str]]:
    """The best and the worst images, drawn, and why some are not."""
    boxes = np.bincount(matched.truth.image[~matched.truth.ignored], minlength=len(matched.truth.image_ids))
    best, worst = extreme_images(image_f1(matched, threshold), boxes, images)
    records = DatasetCatalog.get(name) if best else []
    problems: list[str] = []
    return *(draw_examples(records, rows, matched, threshold, problems) for rows in (best, worst)), problems
