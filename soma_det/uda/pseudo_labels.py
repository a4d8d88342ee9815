"""A frozen teacher's boxes, made once and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import BoxMode
from detectron2.utils import comm

from soma_det.data.build import build_test_loader
from soma_det.engine import load_model
from soma_det.engine.inference import prepared_for_inference
from soma_det.utils.files import write_text

FOLDER = "pseudo_labels"  # in OUTPUT_DIR

logger = logging.getLogger(__name__)


class ConfidentBoxes(DatasetEvaluator):
    """Collects the detections above a threshold, in pixels of the image file."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.images: dict[str, list[list[float]]] = {}

    def reset(self) -> None:
        """Forget all."""
        self.images = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the boxes of some images."""
        for entry, output in zip(inputs, outputs):
            found = output["instances"].to("cpu")
            found = found[found.scores > self.threshold]
            rows = torch.cat([found.pred_boxes.tensor, found.pred_classes[:, None], found.scores[:, None]], 1)
            self.images[str(entry["image_id"])] = rows.tolist()

    def evaluate(self) -> dict[str, list[list[float]]]:
        """image_id as text -> [x0, y0, x1, y1, class, score]; of all processes, on the main one."""
        return {key: rows for part in comm.gather(self.images) for key, rows in part.items()}


def make_pseudo_labels(cfg: CfgNode) -> dict[str, dict]:
    """Label the images of UDA.TARGET with the detector of MODEL.WEIGHTS, or read what it has labelled before.

    The files are ``<OUTPUT_DIR>/pseudo_labels/<number>.json``, in the order of UDA.TARGET.

    Returns:
        target data set -> image_id -> annotations in Detectron2's format, for
        :func:`~soma_det.uda.data.build_uda_train_loader`.
    """
    paths = {name: Path(cfg.OUTPUT_DIR, FOLDER, f"{i}.json") for i, name in enumerate(cfg.UDA.TARGET)}
    made = {name: _describe(cfg, name) for name in paths}
    missing = [name for name, path in paths.items() if not _is_current(path, made[name])]
    if any(comm.all_gather(bool(missing))):
        model = load_model(cfg)
        for name in missing:
            evaluator = ConfidentBoxes(cfg.UDA.LABELS.THRESHOLD)
            with prepared_for_inference(model) as prepared:
                images = inference_on_dataset(prepared, build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                write_text(paths[name], json.dumps({**made[name], "images": images}) + "\n")
        comm.synchronize()
    return {name: _read(path) for name, path in paths.items()}


def _describe(cfg: CfgNode, name: str) -> dict:
    """What the labels depend on."""
    digest = hashlib.sha256(Path(cfg.MODEL.WEIGHTS).read_bytes()).hexdigest()
    return {"data set": name, "weights": digest, "threshold": cfg.UDA.LABELS.THRESHOLD}


def _is_current(path: Path, made: Mapping) -> bool:
    if not path.is_file():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: content.get(key) for key in made} == dict(made)


def _read(path: Path) -> dict:
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    number = sum(map(len, images.values()))
    logger.info("The frozen teacher labelled %d boxes in %d images: %s", number, len(images), path)
    return _ByText({key: [_annotation(row) for row in rows] for key, rows in images.items()})


def _annotation(row: list[float]) -> dict:
    return {"bbox": row[:4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(row[4]), "iscrowd": 0}


class _ByText(dict):
    """Image ids may be numbers, which are texts in json."""

    def __getitem__(self, key: object) -> list[dict]:
        return super().__getitem__(str(key))
