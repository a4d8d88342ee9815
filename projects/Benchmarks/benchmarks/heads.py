"""The demo with each detection head, trained for equal time and scored in every weather."""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

import soma_det
from benchmarks.overfit import HEADS, MASK_HEAD, ROOT, add_box_masks
from benchmarks.report import Report
from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.engine.cpu import training_attention
from soma_det.evaluation.results import load_results
from soma_det.utils.files import write_text

BASELINE = "faster_rcnn"


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
        scores = [train(head, seed, seconds, args) for seed in args.seeds]
        clear, unseen = ([score[key] for score in scores] for key in ("clear", "unseen"))
        row = {"head": head, "seconds an iteration": seconds[head], "iterations": scores[0]["iterations"]}
        by_seed = {f"seed {seed}": f"{c:.1f} / {u:.1f}" for seed, c, u in zip(args.seeds, clear, unseen)}
        mean = f"{statistics.mean(clear):.1f} / {statistics.mean(unseen):.1f}"
        report.rows.append({**row, **by_seed, "mean": mean})
    report.notes = ["VOC AP50 on clear days / mean of the unseen weathers. Mask R-CNN's masks are the boxes."]
    return report


def step_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step by head, medians over rounds in which the heads take turns; measured once a folder."""
    record = Path(args.runs, "seconds.json")
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        trainers = {head: make_trainer(head, args, args.seed, folder, 500) for head in HEADS}
        times: dict[str, list[float]] = {head: [] for head in HEADS}
        for _ in range(args.rounds):
            for head, trainer in trainers.items():
                times[head].append(_time_step(trainer))
    seconds = {head: statistics.median(values[1:] or values) for head, values in times.items()}
    write_text(record, json.dumps(seconds, indent=1) + "\n")
    return seconds


def _time_step(trainer: soma_det.Trainer) -> float:
    batch = next(trainer._trainer._data_loader_iter)  # loading is equal for all
    start = time.perf_counter()
    with EventStorage(0), training_attention(trainer.model):
        loss = sum(trainer.model(batch).values())
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
    return time.perf_counter() - start


def train(head: str, seed: int, seconds: dict[str, float], args: argparse.Namespace) -> dict[str, float]:
    """Train one head with one seed, unless that is done, and give its scores."""
    folder = Path(args.runs, f"{head}_seed{seed}")
    record = folder / "heads.json"
    if not record.exists():
        demo = setup_cfg(str(ROOT / "configs" / "demo.yaml"))
        iterations = round(demo.SOLVER.MAX_ITER * seconds[BASELINE] / seconds[head])
        trainer = make_trainer(head, args, seed, str(folder), iterations)
        trainer.resume_or_load(resume=True)
        trainer.train()
        results = load_results(str(folder))["results"]
        scores = {name: results[name]["voc"]["AP50"] for name in trainer.cfg.DATASETS.TEST}
        clear = scores.pop(trainer.cfg.DATASETS.SOURCE_TEST)
        row = {"clear": clear, "unseen": statistics.mean(scores.values()), "iterations": iterations}
        write_text(record, json.dumps(row) + "\n")
    return json.loads(record.read_text(encoding="utf-8"))


def make_trainer(head: str, args: argparse.Namespace, seed: int, folder: str, iterations: int) -> soma_det.Trainer:
    """The demo's trainer with another head; the steps of the learning rate stand at the demo's fractions."""
    cfg = configure(head, args, seed, folder, iterations)
    Path(folder).mkdir(parents=True, exist_ok=True)
    seed_all_rng(cfg.SEED)
    return soma_det.Trainer(cfg)


def configure(head: str, args: argparse.Namespace, seed: int, folder: str, iterations: int) -> CfgNode:
    """The demo's config with another head and length, and its data registered."""
    schedule = {"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": (iterations * 4 // 5, iterations * 19 // 20)}
    place = {"DATASETS.WEATHER.ROOT": args.data, "OUTPUT_DIR": folder, "SEED": seed, "DATALOADER.NUM_WORKERS": 0}
    settings = {**MASK_HEAD, **HEADS[head], **schedule, **place}
    cfg = setup_cfg(str(ROOT / "configs" / "demo.yaml"), [str(word) for pair in settings.items() for word in pair])
    register_from_config(cfg)
    if cfg.MODEL.MASK_ON:
        name = cfg.DATASETS.TRAIN[0]
        records = DatasetCatalog.get(name)
        add_box_masks(records)
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: records)
    return cfg
