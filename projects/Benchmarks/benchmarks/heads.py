"""The demo with each detection head, trained for equal time and scored in every weather."""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

import soma_det
from benchmarks.demo_heads import HEADS, add_box_masks, build_trainer, configure, train
from benchmarks.report import Report
from soma_det.engine.cpu import training_attention
from soma_det.utils.files import write_text

BASELINE, ITERATIONS = "faster_rcnn", 500  # the demo's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Heads, seeds and data."""
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2], help="default: 42 1 2")
    parser.add_argument("--data", default="datasets/synthdrive", help="SynthDrive's folder (default: %(default)s)")
    parser.add_argument("--runs", default="output/heads", help="folder (default: %(default)s)")


def run(args: argparse.Namespace) -> Report:
    """Time all heads once, then train what is not trained yet, the rest from where it stopped."""
    setup_logger(name="soma_det", abbrev_name="soma")
    setup_logger()
    seconds = step_seconds(args)
    report = Report("The demo by head, at equal time", vars(args))
    for head in args.heads:
        iterations = round(ITERATIONS * seconds[BASELINE] / seconds[head])
        scores = {f"seed {seed}": score(head, seed, iterations, args) for seed in args.seeds}
        scores["mean"] = {key: statistics.mean(s[key] for s in scores.values()) for key in ("clear", "unseen")}
        cells = {name: f"{found['clear']:.1f} / {found['unseen']:.1f}" for name, found in scores.items()}
        report.rows.append({"head": head, "seconds an iteration": seconds[head], "iterations": iterations, **cells})
    report.notes = ["VOC AP50 on clear days / mean of the unseen weathers. Mask R-CNN's masks are the boxes."]
    return report


def step_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step by head, medians over rounds in which the heads take turns; measured once a folder."""
    record = Path(args.runs, "seconds.json")
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        configs = [configure_length(head, args, args.seed, Path(folder, head), ITERATIONS) for head in HEADS]
        trainers = {head: build_trainer(cfg) for head, cfg in zip(HEADS, configs, strict=True)}
        times: dict[str, list[float]] = {head: [] for head in HEADS}
        for _, batch in zip(range(args.rounds), trainers["mask_rcnn"].data_loader, strict=False):  # it has masks too
            for head, trainer in trainers.items():
                times[head].append(_time_step(trainer, batch))
    seconds = {head: statistics.median(values[1:] or values) for head, values in times.items()}
    write_text(record, json.dumps(seconds, indent=1) + "\n")
    return seconds


def _time_step(trainer: soma_det.Trainer, batch: list[dict]) -> float:
    start = time.perf_counter()
    with EventStorage(0), training_attention(trainer.model):
        loss = sum(trainer.model(batch).values())
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
    return time.perf_counter() - start


def score(head: str, seed: int, iterations: int, args: argparse.Namespace) -> dict[str, float]:
    """VOC AP50 of one head with one seed on clear days and in the mean of the unseen weathers; trained unless it is."""
    folder = Path(args.runs, f"{head}_seed{seed}")
    record = folder / "heads.json"
    if not record.exists():
        cfg = configure_length(head, args, seed, folder, iterations)
        results = train(cfg)
        scores = {name: results[name]["voc"]["AP50"] for name in cfg.DATASETS.TEST}
        clear = scores.pop(cfg.DATASETS.SOURCE_TEST)
        write_text(record, json.dumps({"clear": clear, "unseen": statistics.mean(scores.values())}) + "\n")
    return json.loads(record.read_text(encoding="utf-8"))


def configure_length(head: str, args: argparse.Namespace, seed: int, folder: Path, iterations: int) -> CfgNode:
    """Base-CPU.yaml with another head and length; the learning rate drops at the demo's fractions of it."""
    schedule = {"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": (iterations * 4 // 5, iterations * 19 // 20)}
    place = {"DATASETS.WEATHER.ROOT": args.data, "OUTPUT_DIR": str(folder), "SEED": seed}
    cfg = configure(head, {**schedule, **place, "DATALOADER.NUM_WORKERS": 0})
    if cfg.MODEL.MASK_ON:
        name = cfg.DATASETS.TRAIN[0]
        records = DatasetCatalog.get(name)
        add_box_masks(records)
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: records)
    return cfg
