"""Detectors that learn ten images by heart, one for each head: one that cannot has a fault."""

import argparse
import json
import time
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from benchmarks.demo_heads import HEADS, add_box_masks, configure, train
from benchmarks.report import Limit, Report
from soma_det.utils.files import write_text

IMAGES, NAME = 10, "overfit_images"
MOST_LOST = 5.0  # points of VOC AP50, below 100
BY_HEART: dict[str, dict[str, object]] = {
    # By default anchors with an IoU between 0.4 and 0.5 are never taught, and some of them detect what is not there.
    "retinanet": {"MODEL.RETINANET.IOU_THRESHOLDS": [0.5, 0.5]},
}
# The images as they are, again and again.
SETTINGS: dict[str, object] = {
    "INPUT.AUGMENTATION.SCALE_RANGE": [1.0, 1.0],
    "INPUT.AUGMENTATION.PHOTOMETRIC": False,
    "INPUT.RANDOM_FLIP": "none",
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "DATALOADER.NUM_WORKERS": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Heads, length and data."""
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="default: all")
    parser.add_argument("--iterations", type=int, default=400, help="of 4 images (default: %(default)s)")
    parser.add_argument("--data", default="datasets/synthdrive", help="SynthDrive's folder (default: %(default)s)")
    parser.add_argument("--runs", default="output/overfit", help="folder (default: %(default)s)")


def run(args: argparse.Namespace) -> Report:
    """Train the heads that are not trained yet, the others from where they stopped."""
    setup_logger(name="soma_det", abbrev_name="soma")
    setup_logger()
    report = Report(f"{IMAGES} images by heart", vars(args))
    for head in args.heads:
        record = Path(args.runs, head, "overfit.json")
        if not record.exists():
            write_text(record, json.dumps(overfit(head, args)) + "\n")
        row = json.loads(record.read_text(encoding="utf-8"))
        report.rows.append({"head": head, **row})
        report.limits.append(Limit(f"VOC AP50 that {head} lacks", 100 - row["VOC AP50"], MOST_LOST))
    report.notes = [f"Scored on the {IMAGES} images that were trained on, {args.iterations} iterations, 4 at a time."]
    return report


def overfit(head: str, args: argparse.Namespace) -> dict[str, float]:
    """Train one head on the images, and score it on them."""
    start = time.perf_counter()
    scores = train(configure_images(head, args))[NAME]
    minutes = (time.perf_counter() - start) / 60
    return {"VOC AP50": scores["voc"]["AP50"], "COCO AP": scores["bbox"]["AP"], "minutes": minutes}


def configure_images(head: str, args: argparse.Namespace) -> CfgNode:
    """Base-CPU.yaml with another head, trained and scored on the images."""
    schedule = {"SOLVER.MAX_ITER": args.iterations, "SOLVER.STEPS": (args.iterations * 4 // 5,)}
    place = {"DATASETS.WEATHER.ROOT": args.data, "OUTPUT_DIR": str(Path(args.runs, head)), "SEED": args.seed}
    cfg = configure(head, {**SETTINGS, **BY_HEART.get(head, {}), **schedule, **place})
    register_images(cfg.DATASETS.TRAIN[0])
    cfg.defrost()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.SOURCE_TEST = (NAME,), (NAME,), NAME
    cfg.freeze()
    return cfg


def register_images(source: str) -> None:
    """Register the first images of a data set that have boxes; a mask is its whole box."""
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    records = [record for record in DatasetCatalog.get(source) if record["annotations"]][:IMAGES]
    add_box_masks(records)
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=MetadataCatalog.get(source).thing_classes)
