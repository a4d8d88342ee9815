"""Draws some images of a registered split, with their ground truth beside the detections."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from soma_det.evaluation.detections import load_detections
from soma_det.utils.contact_sheet import contact_sheet
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import draw_detections, draw_ground_truth

Predict = Callable[[Mapping, np.ndarray], Instances]  # (record of the data set, RGB image) -> detections


def draw_split(
    dataset_name: str,
    predict: Predict,
    count: int,
    seed: int = 0,
    confidence_threshold: float = 0.5,
    width: int = 0,
    ground_truth: bool = True,
) -> Iterator[tuple[dict, np.ndarray]]:
    """Draw some images of a registered split, with the ground truth on the left and the detections on the right.

    Args:
        predict: the detections for a record and its RGB image.
        count, seed: which images, see :func:`choose_records`.
        width: of each drawing in pixels, see :func:`draw_detections`.
        ground_truth: False draws the detections only, without a header.

    Yields:
        (record, drawing).
    """
    classes = MetadataCatalog.get(dataset_name).thing_classes
    for record in choose_records(DatasetCatalog.get(dataset_name), count, seed):
        image = read_image(record["file_name"])
        detections = predict(record, image)
        drawing = draw_detections(image, detections, classes, confidence_threshold, width)
        if ground_truth:
            found = int((detections.scores >= confidence_threshold).sum())
            truth = draw_ground_truth(image, record, classes, width)
            columns = {
                f"ground truth ({len(record.get('annotations', []))})": [truth],
                f"detections, confidence at least {confidence_threshold:g} ({found})": [drawing],
            }
            drawing = contact_sheet(columns, cell_width=drawing.shape[1])
        yield record, drawing


def choose_records(records: Sequence[dict], count: int, seed: int = 0) -> list[dict]:
    """``count`` records, the same for the same seed, in their order; those with several objects come first.

    Records with three or more objects and two or more classes are drawn from before all others.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    chosen = sorted(order, key=lambda i: -_interest(records[i]))[:count]
    return [records[i] for i in sorted(chosen)]


def saved_detections(path: str | os.PathLike, dataset_name: str) -> Predict:
    """A ``predict`` for :func:`draw_split` that takes the detections from a file.

    Raises:
        OSError, ValueError: see :func:`~soma_det.evaluation.detections.load_detections`.
    """
    found = load_detections(path, dataset_name)
    position = {record["image_id"]: i for i, record in enumerate(DatasetCatalog.get(dataset_name))}

    def predict(record: Mapping, image: np.ndarray) -> Instances:
        of_image = found.select(found.image == position[record["image_id"]])
        result = Instances(image.shape[:2])
        result.pred_boxes = Boxes(torch.as_tensor(of_image.xyxy, dtype=torch.float32))
        result.scores = torch.as_tensor(of_image.score, dtype=torch.float32)
        result.pred_classes = torch.as_tensor(of_image.category)
        return result

    return predict


def _interest(record: Mapping) -> int:
    numbers = [a["category_id"] for a in record.get("annotations", ())]
    return min(len(numbers), 3) + min(len(set(numbers)), 2)
