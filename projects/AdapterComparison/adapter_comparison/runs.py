"""A run: one configuration with one seed, and what it leaves in its folder."""

import functools
import hashlib
import json
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from adapter_comparison.bootstrap import resample_split
from adapter_comparison.plan import Comparison, flat_settings
from adapter_comparison.process import Exit
from adapter_comparison.structure import build_structure
from soma_det.config import setup_cfg
from soma_det.evaluation.detections import DETECTIONS_FILE
from soma_det.evaluation.results import load_results
from soma_det.modeling.backbone.timm_vit import count_parameters
from soma_det.utils.files import atomic_path, write_text

RECORD_FILE, LOG_FILE, RESAMPLED_FILE = "run.json", "train.log", "resampled.npz"
# Where things are and how they are loaded, which changes no result.
FREE_SETTINGS = {"OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD"}


@dataclass(frozen=True)
class Run:
    """One training: a configuration with a seed.

    Attributes:
        arguments: of tools/train_net.py.
        folder: where everything of this run is written.
        cfg: the config that the arguments give.
    """

    name: str
    seed: int
    arguments: tuple[str, ...]
    folder: Path
    cfg: CfgNode = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class Finished:
    """The results of a finished run.

    Attributes:
        record: what :func:`record_run` wrote.
        results: split -> what the evaluator returned for it.
        resampled: split -> (resamples, classes) VOC AP50 on resampled images.
    """

    run: Run
    record: dict[str, Any]
    results: dict[str, dict[str, Any]]
    resampled: dict[str, np.ndarray]


def plan_runs(comparison: Comparison, output: str | Path) -> list[Run]:
    """All runs, ordered by seed: when the first seed is done, every configuration has been trained once.

    Raises:
        ValueError: a setting is wrong. The message names the run.
    """
    runs = []
    for seed in comparison.seeds:
        for configuration in comparison.configurations:
            folder = Path(output) / configuration.name / f"seed{seed}"
            own = [word.replace("{seed}", str(seed)) for word in configuration.opts]
            words = [*own, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
            try:
                cfg = setup_cfg(configuration.config_file, words)
            except ValueError as error:
                raise ValueError(f"The run {configuration.name}: {error}") from error
            arguments = ("--config-file", configuration.config_file, "--resume", *words)
            runs.append(Run(configuration.name, seed, arguments, folder, cfg))
    return runs


def is_finished(run: Run) -> bool:
    """Whether the run has been trained and evaluated."""
    return (run.folder / RECORD_FILE).is_file()


def load_finished(runs: Sequence[Run]) -> list[Finished]:
    """The results of all finished runs, in their order."""
    finished = []
    for run in filter(is_finished, runs):
        with np.load(run.folder / RESAMPLED_FILE) as arrays:
            resampled = dict(arrays)
        results = load_results(run.folder)["results"]
        finished.append(Finished(run, read_record(run), results, resampled))
    return finished


def require_unchanged(run: Run) -> None:
    """Raise a ValueError if the run's folder holds a training with other settings, pretrained weights or data."""
    saved = run.folder / "config.yaml"
    if saved.is_file() and (is_finished(run) or (run.folder / "last_checkpoint").is_file()):
        before, now = flat_settings(setup_cfg(str(saved))), flat_settings(run.cfg)
        changed = [key for key in now if now[key] != before.get(key) and key not in FREE_SETTINGS]
        if changed:
            key = changed[0]
            _refuse(run, f"{key} {before.get(key)!r}, where now it is {now[key]!r}")
    if not is_finished(run):
        return
    record = read_record(run)
    if record["weights_sha256"] != weights_sha256(run.cfg):
        _refuse(run, f"another content of {run.cfg.MODEL.VIT.WEIGHTS}, or that file is gone")
    data = data_sha256((*run.cfg.DATASETS.TRAIN, *run.cfg.DATASETS.TEST))
    if record.get("data_sha256", data) != data:
        _refuse(run, "other images or boxes")


def _refuse(run: Run, what: str) -> None:
    raise ValueError(
        f"{run.folder} was trained with {what}. Give the changed run another name, use another --output, or "
        f"delete {run.folder} to train it again."
    )


def record_run(run: Run, exit: Exit, seconds: float) -> None:
    """Write the scores on resampled images, then the run's record, whose file marks the run as finished."""
    resampled = {
        name: resample_split(name, run.folder / "inference" / name / DETECTIONS_FILE) for name in run.cfg.DATASETS.TEST
    }
    with atomic_path(run.folder / RESAMPLED_FILE) as temporary:
        np.savez_compressed(temporary, **resampled)
    record = {
        "name": run.name,
        "seed": run.seed,
        "arguments": list(run.arguments),
        "weights_sha256": weights_sha256(run.cfg),
        "data_sha256": data_sha256((*run.cfg.DATASETS.TRAIN, *run.cfg.DATASETS.TEST)),
        "seconds": round(seconds, 1),
        "seconds_per_iteration": seconds_per_iteration(run.folder),
        "peak_memory_mb": _peak_memory_mb(run, exit),
        "trainable_parameters": count_trainable(run.cfg),
    }
    write_text(run.folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_record(run: Run) -> dict[str, Any]:
    """What :func:`record_run` wrote."""
    return json.loads((run.folder / RECORD_FILE).read_text(encoding="utf-8"))


def count_trainable(cfg: CfgNode) -> dict[str, int]:
    """Trained parameters: "adapter", of the ViT (or of all of another backbone), and "all", with pyramid and head."""
    model = build_structure(cfg)
    adapted = getattr(model.backbone, "net", model.backbone)
    return {"adapter": count_parameters(adapted, trainable=True), "all": count_parameters(model, trainable=True)}


def seconds_per_iteration(folder: Path) -> float | None:
    """Median of the times in metrics.json; None if the training was too short to log any."""
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    times = [entry["time"] for entry in map(json.loads, lines) if "time" in entry]
    return statistics.median(times) if times else None


def _peak_memory_mb(run: Run, exit: Exit) -> float | None:
    """On CUDA the peak of the GPU, which Detectron2 logs; otherwise that of the training process."""
    if not run.cfg.MODEL.DEVICE.startswith("cuda"):
        return exit.peak_memory_mb
    found = re.findall(r"max_mem: (\d+)M", (run.folder / "log.txt").read_text(encoding="utf-8"))
    return float(max(map(int, found))) if found else None


def weights_sha256(cfg: CfgNode) -> str:
    """SHA-256 of the file of pretrained weights; "" for random weights and for those of timm's hub."""
    path = cfg.MODEL.VIT.WEIGHTS
    return _sha256(path, os.stat(path).st_mtime_ns) if os.path.isfile(path) else ""


@functools.lru_cache
def data_sha256(names: tuple[str, ...]) -> str:
    """SHA-256 of the names of the images and of their boxes. The images themselves are not read."""
    digest = hashlib.sha256()
    for name in names:
        for record in DatasetCatalog.get(name):
            boxes = [(box["category_id"], [float(x) for x in box["bbox"]]) for box in record.get("annotations", ())]
            digest.update(json.dumps([str(record["image_id"]), boxes]).encode())
    return digest.hexdigest()


@functools.lru_cache
def _sha256(path: str, _changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()
