"""The boxes of a whole split, as columns of numpy arrays."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode


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
        """Number of boxes of every class that count, so without the ignored ones."""
        number = np.bincount(self.category[~self.ignored], minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, number)}


@dataclass(frozen=True)
class Detections:
    """All detections on one split.

    Attributes:
        image: (N,) int64, position in the split's list of images.
        category: (N,) int64.
        xyxy: (N, 4) float64, pixels, XYXY_ABS.
        score: (N,) float64.
    """

    image: np.ndarray
    category: np.ndarray
    xyxy: np.ndarray
    score: np.ndarray

    def of_class(self, category: int) -> "Detections":
        """The rows of one class, in their order."""
        rows = self.category == category
        return Detections(self.image[rows], self.category[rows], self.xyxy[rows], self.score[rows])


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
            f"{len(classes)} class names ({', '.join(classes)}); ids have to be 0 to {len(classes) - 1}."
        )
    return GroundTruth(
        image_ids=image_ids,
        classes=classes,
        image=np.array([i for i, _ in rows], dtype=np.int64),
        category=category,
        xyxy=np.array([box_xyxy(a) for _, a in rows], dtype=np.float64).reshape(-1, 4),
        ignored=np.array([bool(a.get("iscrowd", 0) or a.get("difficult", 0)) for _, a in rows], dtype=bool),
    )


def box_xyxy(annotation: dict) -> list[float]:
    """The box of an annotation in Detectron2's format as [x0, y0, x1, y1] in pixels."""
    return list(BoxMode.convert([float(x) for x in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYXY_ABS))
