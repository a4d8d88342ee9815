"""A detector of a few thousand weights, and images to train it on: what costs memory or time beside the model shows."""

from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from soma_det.config import CLASSES, setup_cfg

CONFIG = Path(__file__).parents[3] / "configs" / "Base-SoMA.yaml"
SIZE = (72, 96)  # (H, W), pixels
OBJECTS = 4  # in an image
SETTINGS: dict[str, object] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.VIT.NAME": "test_vit",
    "MODEL.VIT.WEIGHTS": "",
    "MODEL.VIT.IMG_SIZE": [64, 64],
    "MODEL.VIT.FROZEN_BLOCKS": 2,
    "MODEL.ADAPTER.RANK": 2,
    "MODEL.PYRAMID.OUT_CHANNELS": 8,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "INPUT.AUGMENTATION.CROP_SIZE": [64, 64],
    "INPUT.AUGMENTATION.SCALE_RANGE": [0.5, 1.5],
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "SOLVER.AMP.CPU": "off",
    "SOLVER.IMS_PER_BATCH": 2,
}


def tiny_cfg(output: Path, train: str, test: str, settings: dict[str, object]) -> CfgNode:
    """The frozen config of a tiny run on two registered data sets; "" for none."""
    keys = SETTINGS | settings | {"OUTPUT_DIR": str(output), "DATASETS.SOURCE_TEST": test}
    keys |= {"DATASETS.TRAIN": [train] if train else [], "DATASETS.TEST": [test] if test else []}
    return setup_cfg(str(CONFIG), [str(word) for pair in keys.items() for word in pair])


def write_images(folder: Path, count: int, seed: int) -> list[dict]:
    """JPEGs with rectangles on noise, as Detectron2's records."""
    generator = np.random.default_rng(seed)
    records = []
    for number in range(count):
        image = generator.integers(90, 160, (*SIZE, 3), dtype=np.uint8)
        annotations = []
        for x, y in generator.integers(0, SIZE[0] - 24, (OBJECTS, 2)).tolist():
            category = int(generator.integers(len(CLASSES)))
            image[y : y + 20, x : x + 24] = 30 * category
            annotations.append({"bbox": [x, y, x + 24, y + 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": category})
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), image)
        size = {"height": SIZE[0], "width": SIZE[1]}
        records.append({"file_name": str(path), "image_id": number, **size, "annotations": annotations})
    return records


def register(name: str, records: list[dict], count: int) -> None:
    """Register the records again and again, up to ``count`` images, each with an id of its own."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(
        name, lambda: [{**records[number % len(records)], "image_id": number} for number in range(count)]
    )
    MetadataCatalog.get(name).set(thing_classes=list(CLASSES))
