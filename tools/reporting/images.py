"""Draws images with ground truth and detections, small enough to be part of a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from soma_det.evaluation.analysis import Matched, image_f1
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import draw_detections, draw_ground_truth

WIDTH, QUALITY = 480, 78  # pixels, and JPEG's


@dataclass(frozen=True)
class Example:
    """An image of a split: ``truth`` and ``detections`` are drawings, as data URLs; ``f1`` is from 0 to 1."""

    name: str
    truth: str
    detections: str
    f1: float
    found: int
    boxes: int
    false_alarms: int


def draw_examples(
    records: Sequence[dict], rows: Sequence[int], matched: Matched, threshold: float, problems: list[str]
) -> list[Example]:
    """Draw the images at these positions; for one that cannot be read, the reason is added to ``problems``."""
    scores = image_f1(matched, threshold)
    examples = []
    for row in rows:
        try:
            image = read_image(records[row]["file_name"])
        except OSError as error:
            problems.append(str(error))
            continue
        examples.append(_draw(image, records[row], row, matched, threshold, float(scores[row])))
    return examples


def data_url(image: np.ndarray) -> str:
    """RGB (H, W, 3) uint8 as a JPEG inside of an address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw(image: np.ndarray, record: dict, row: int, matched: Matched, threshold: float, f1: float) -> Example:
    truth, classes = matched.truth, matched.truth.classes
    shown = (matched.detections.image == row) & (matched.detections.score >= threshold)
    detections = matched.detections.select(shown)
    instances = Instances(image.shape[:2])
    instances.pred_boxes = Boxes(torch.as_tensor(detections.xyxy, dtype=torch.float32))
    instances.scores = torch.as_tensor(detections.score)
    instances.pred_classes = torch.as_tensor(detections.category)
    found = int(matched.hit[shown].sum())
    return Example(
        name=Path(record["file_name"]).name,
        truth=data_url(draw_ground_truth(image, record, classes, WIDTH)),
        detections=data_url(draw_detections(image, instances, classes, threshold, WIDTH)),
        f1=f1,
        found=found,
        boxes=int((~truth.ignored[truth.image == row]).sum()),
        false_alarms=len(detections) - found,
    )
