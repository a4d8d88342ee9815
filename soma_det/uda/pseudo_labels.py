"""A frozen teacher's boxes, made once and kept on disk as detections."""

import hashlib
import logging
from collections import OrderedDict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import BoxMode
from detectron2.utils import comm

from soma_det.data.build import build_test_loader
from soma_det.engine import load_model
from soma_det.engine.inference import prepared_for_inference
from soma_det.evaluation.coco_evaluation import CocoEvaluator
from soma_det.evaluation.detections import load_detections

FOLDER = "pseudo_labels"  # in OUTPUT_DIR

logger = logging.getLogger(__name__)


class ConfidentBoxes(CocoEvaluator):
    """Writes the detections above a threshold to a file, and scores nothing."""

    def __init__(self, dataset_name: str, threshold: float, path: Path):
        super().__init__(dataset_name)
        self.threshold, self._file = threshold, path

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the confident detections of a batch."""
        found = [output["instances"] for output in outputs]
        super().process(inputs, [{"instances": image[image.scores > self.threshold]} for image in found])

    def evaluate(self) -> OrderedDict:
        """Write the file; there are no scores."""
        self.gather()
        return OrderedDict()


def make_pseudo_labels(cfg: CfgNode) -> dict[str, list[list[dict]]]:
    """Label the images of UDA.TARGET with the detector of MODEL.WEIGHTS, or read what it has labelled before.

    Returns:
        target data set -> the annotations of each of its images, in Detectron2's format, for
        :func:`~soma_det.uda.data.build_uda_train_loader`.
    """
    paths = {name: _path(cfg, name) for name in cfg.UDA.TARGET}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if any(comm.all_gather(bool(missing))):
        model = load_model(cfg)
        for name in missing:
            evaluator = ConfidentBoxes(name, cfg.UDA.LABELS.THRESHOLD, paths[name])
            with prepared_for_inference(model) as prepared:
                inference_on_dataset(prepared, build_test_loader(cfg, name), evaluator)
        comm.synchronize()
    return {name: _read(path, name) for name, path in paths.items()}


def _path(cfg: CfgNode, name: str) -> Path:
    """A file of its own for each data set, detector and threshold."""
    digest = hashlib.sha256(Path(cfg.MODEL.WEIGHTS).read_bytes())
    digest.update(f"{name} {cfg.UDA.LABELS.THRESHOLD}".encode())
    return Path(cfg.OUTPUT_DIR, FOLDER, f"{digest.hexdigest()[:16]}.json")


def _read(path: Path, name: str) -> list[list[dict]]:
    found = load_detections(path, name)
    annotations: list[list[dict]] = [[] for _ in DatasetCatalog.get(name)]
    for image, category, box in zip(found.image.tolist(), found.category.tolist(), found.xyxy.tolist()):
        label = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": 0}
        annotations[image].append(label)
    logger.info("The frozen teacher labelled %d boxes in %d images: %s", len(found), len(annotations), path)
    return annotations
