"""Base-CPU.yaml with another detection head: its settings, and training it."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

import soma_det
from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.evaluation.results import load_results

BASE = Path(__file__).parents[3] / "configs" / "Base-CPU.yaml"
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
# Small: it makes nothing but the mask.
MASK_HEAD: dict[str, object] = {
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}


def configure(head: str, settings: dict[str, object]) -> CfgNode:
    """Base-CPU.yaml with another head and other settings, its data registered."""
    words = [str(word) for pair in ({**MASK_HEAD, **HEADS[head], **settings}).items() for word in pair]
    cfg = setup_cfg(str(BASE), words)
    register_from_config(cfg)
    return cfg


def build_trainer(cfg: CfgNode) -> soma_det.Trainer:
    """A trainer that the config's seed determines."""
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_all_rng(cfg.SEED)
    return soma_det.Trainer(cfg)


def train(cfg: CfgNode) -> dict[str, Any]:
    """Train, from where an interrupted training stopped, and give the results of each split."""
    trainer = build_trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return load_results(cfg.OUTPUT_DIR)["results"]


def add_box_masks(records: list[dict[str, Any]]) -> None:
    """Give each object of Detectron2's records its whole box as mask: SynthDrive has boxes alone."""
    for annotation in (a for record in records for a in record["annotations"]):
        x0, y0, x1, y1 = annotation["bbox"]
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
