"""Detectors that learn ten images by heart, one for each head: one that cannot has a fault."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

import soma_det
from benchmarks.report import Limit, Report
from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.evaluation.results import load_results
from soma_det.utils.files import write_text

ROOT = Path(__file__).parents[3]
IMAGES, NAME = 10, "overfit_images"
MOST_LOST = 5.0  # points of VOC AP50, below 100
HEADS: dict[str, dict[str, object]] = {
    "faster_rcnn": {},
    "cascade_rcnn": {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"},
    "mask_rcnn": {"MODEL.MASK_ON": True, "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead"},
    "retinanet": {
        "MODEL.META_ARCHITECTURE": "AdaptedRetinaNet",
        "MODEL.RETINANET.NUM_CLASSES": 7,
        "MODEL.ANCHOR_GENERATOR.SIZES": [
            [size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (16, 32, 64, 128, 256)
        ],
    },
    "lw_detr": {
        "MODEL.META_ARCHITECTURE": "AdaptedLwDETR",
        "MODEL.PYRAMID.OUT_CHANNELS": 128,
        "MODEL.DETR.NUM_QUERIES": 100,
        "MODEL.DETR.GROUPS": 4,
        "SOLVER.BASE_LR": 0.0004,
    },
}
MASK_HEAD: dict[str, object] = {
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
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
    cfg = configure(head, args)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_all_rng(cfg.SEED)
    start = time.perf_counter()
    trainer = soma_det.Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    scores = load_results(cfg.OUTPUT_DIR)["results"][NAME]
    minutes = (time.perf_counter() - start) / 60
    return {"VOC AP50": scores["voc"]["AP50"], "COCO AP": scores["bbox"]["AP"], "minutes": minutes}


def configure(head: str, args: argparse.Namespace) -> CfgNode:
    """The demo's config with another head, and its images registered."""
    schedule = {"SOLVER.MAX_ITER": args.iterations, "SOLVER.STEPS": (args.iterations * 4 // 5,)}
    place = {"DATASETS.WEATHER.ROOT": args.data, "OUTPUT_DIR": str(Path(args.runs, head)), "SEED": args.seed}
    settings = {**SETTINGS, **MASK_HEAD, **HEADS[head], **BY_HEART.get(head, {}), **schedule, **place}
    cfg = setup_cfg(str(ROOT / "configs" / "demo.yaml"), [str(word) for pair in settings.items() for word in pair])
    register_from_config(cfg)
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


def add_box_masks(records: list[dict[str, Any]]) -> None:
    """Give each object of Detectron2's records its whole box as mask: SynthDrive has boxes alone."""
    for annotation in (a for record in records for a in record["annotations"]):
        x0, y0, x1, y1 = annotation["bbox"]
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
