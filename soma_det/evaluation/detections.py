"""The boxes of a split, annotated and detected, as columns of numpy arrays, and the files that hold detections."""

import json
import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from soma_det.utils.files import atomic_path

DETECTIONS_FILE = "coco_instances_results.json"  # COCOEvaluator's name for it
BLOCK = 10_000  # detections that are text at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundTruth:
    """All annotated boxes of one split.

    Attributes:
        image_ids: the records' ``image_id``, in the order of the data set; rows below refer to it by position.
        classes: class names, in the order of the category numbers.
        image: (N,) int64, position in ``image_ids``.
        category: (N,) int64, 0 to len(classes) - 1.
        xyxy: (N, 4) float64, pixels, XYXY_ABS.
        ignored: (N,) bool, COCO crowds and VOC's "difficult": neither a hit nor a miss.
    """

    image_ids: Sequence[Hashable]
    classes: Sequence[str]
    image: np.ndarray
    category: np.ndarray
    xyxy: np.ndarray
    ignored: np.ndarray

    def counts(self) -> dict[str, int]:
        """Number of boxes of every class, without the ignored ones."""
        number = np.bincount(self.category[~self.ignored], minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, number)}


@dataclass(frozen=True)
class Detections:
    """All detections on one split.

    Attributes:
        image: (N,) int32 or int64, position in a list of images, usually ``GroundTruth.image_ids``.
        category: (N,) int32 or int64, 0 to the number of classes - 1.
        xyxy: (N, 4) float32, as models give them, or float64, pixels, XYXY_ABS. Compute with :meth:`select`'s.
        score: (N,) float32 or float64.
    """

    image: np.ndarray
    category: np.ndarray
    xyxy: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: np.ndarray) -> "Detections":
        """Some rows, by a mask (N,) bool or by their positions (M,) int64, as int64 and float64 to compute with."""
        image, category = (column[rows].astype(np.int64, copy=False) for column in (self.image, self.category))
        xyxy, score = (column[rows].astype(np.float64, copy=False) for column in (self.xyxy, self.score))
        return Detections(image, category, xyxy, score)


def load_ground_truth(dataset_name: str) -> GroundTruth:
    """Read the boxes of a registered split, whatever its format on disk and the mode of its boxes.

    Raises:
        ValueError: two images share an ``image_id``, or a category number has no class name.
    """
    records = DatasetCatalog.get(dataset_name)
    classes = tuple(MetadataCatalog.get(dataset_name).thing_classes)
    image_ids = [record["image_id"] for record in records]
    if len(set(image_ids)) != len(image_ids):
        twice = Counter(image_ids).most_common(1)[0][0]
        raise ValueError(f"{dataset_name}: image_id {twice!r} is used by more than one image; make the ids unique.")
    rows = [(i, a) for i, record in enumerate(records) for a in record.get("annotations", ())]
    category = np.array([a["category_id"] for _, a in rows], dtype=np.int64)
    if category.size and not 0 <= category.min() <= category.max() < len(classes):
        raise ValueError(
            f"{dataset_name}: category ids reach from {category.min()} to {category.max()}, but there are "
            f"{len(classes)} class names ({', '.join(classes)}); ids must be 0 to {len(classes) - 1}."
        )
    image = np.array([i for i, _ in rows], dtype=np.int64)
    xyxy = np.array([box_xyxy(a) for _, a in rows], dtype=np.float64).reshape(-1, 4)
    ignored = np.array([bool(a.get("iscrowd", 0) or a.get("difficult", 0)) for _, a in rows], dtype=bool)
    return GroundTruth(image_ids, classes, image, category, xyxy, ignored)


def box_xyxy(annotation: Mapping) -> list[float]:
    """The box of an annotation in Detectron2's format as [x0, y0, x1, y1] in pixels."""
    return list(BoxMode.convert([float(x) for x in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYXY_ABS))


def save_detections(
    path: str | os.PathLike, detections: Detections, image_ids: Sequence[Hashable], dataset_name: str
) -> None:
    """Write detections in COCO's results format, one per line, atomically.

    Classes are written by their ids in the data set's json file if there is one, else by their numbers, as
    COCOEvaluator does.

    Args:
        image_ids: what ``detections.image`` counts.
    """
    category_ids = {number: category_id for category_id, number in _category_numbers(dataset_name).items()}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for start in range(0, len(detections), BLOCK):
            part = detections.select(np.arange(start, min(start + BLOCK, len(detections))))
            lines = _coco_lines(part, image_ids, category_ids)
            file.write((",\n" if start else "\n") + ",\n".join(lines))
        file.write("\n]\n" if len(detections) else "]\n")
    logger.info(f"Saved {len(detections)} detections to {path}.")


def _coco_lines(
    detections: Detections, image_ids: Sequence[Hashable], category_ids: Mapping[int, int]
) -> Iterator[str]:
    # Differences of float32 corners in float64 are not rounded, so reading gives back the corners.
    xywh = np.concatenate([detections.xyxy[:, :2], detections.xyxy[:, 2:] - detections.xyxy[:, :2]], axis=1)
    rows = zip(detections.image.tolist(), detections.category.tolist(), xywh.tolist(), detections.score.tolist())
    for image, category, box, score in rows:
        yield json.dumps(
            {"image_id": image_ids[image], "category_id": category_ids[category], "bbox": box, "score": score}
        )


def load_detections(path: str | os.PathLike, dataset_name: str) -> Detections:
    """Read detections on a registered split from a file in COCO's results format.

    Returns:
        the detections in the order of the file; ``image`` is the position in the data set.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in another format, or has images or category ids that the split lacks.
    """
    position = {record["image_id"]: i for i, record in enumerate(DatasetCatalog.get(dataset_name))}
    numbers = _category_numbers(dataset_name)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
        xywh = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(len(entries), 4)
        score = np.array([entry["score"] for entry in entries], dtype=np.float64)
        image_ids = [entry["image_id"] for entry in entries]
        category_ids = [entry["category_id"] for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not in COCO's results format, a list of objects with image_id, category_id, bbox and score "
            f"({type(error).__name__}: {error})."
        ) from error
    for key, values, known in (("image_id", image_ids, position), ("category_id", category_ids, numbers)):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(
                f"{path} has detections with {key} {unknown[0]!r}, which is not in {dataset_name}: they were made on "
                "another data set, or the data set has changed since. Restore it, or test again."
            )
    image = np.array([position[image_id] for image_id in image_ids], dtype=np.int64)
    category = np.array([numbers[category_id] for category_id in category_ids], dtype=np.int64)
    return Detections(image, category, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1), score)


def _category_numbers(dataset_name: str) -> dict[int, int]:
    """Category id in COCO files of this data set -> class number."""
    DatasetCatalog.get(dataset_name)  # reading a COCO json file sets the metadata
    metadata = MetadataCatalog.get(dataset_name)
    numbers = {number: number for number in range(len(metadata.thing_classes))}
    return metadata.get("thing_dataset_id_to_contiguous_id", numbers)
