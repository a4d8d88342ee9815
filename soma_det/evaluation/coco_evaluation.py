"""Scores detections on one split: COCO's average precisions and VOC's 11-point AP, from one pass over the images."""

import contextlib
import gc
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster

from soma_det.evaluation.detections import Detections, GroundTruth, load_ground_truth
from soma_det.evaluation.voc_evaluation import voc_average_precision
from soma_det.utils.files import atomic_path

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
PREDICTIONS_FILE = "coco_instances_results.json"

logger = logging.getLogger(__name__)


class WeatherEvaluator(DatasetEvaluator):
    """Gathers the detections on one registered split and scores them against its ground truth.

    Works on every data set that is registered with ``thing_classes`` and whose records have an ``image_id``: VOC
    folders and COCO json files alike. During inference a rank holds 24 bytes per detection.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike | None = None):
        """
        Args:
            dataset_name: a split registered in DatasetCatalog.
            output_dir: where to save the detections, as ``<output_dir>/<dataset_name>/coco_instances_results.json``.
        """
        self.dataset_name = dataset_name
        self._predictions_file = output_dir and Path(output_dir) / dataset_name / PREDICTIONS_FILE
        self._num_classes = len(MetadataCatalog.get(dataset_name).thing_classes)
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._image_ids: list[Hashable] = []
        self._rows: list[np.ndarray] = []  # per image (n, 6) float32: x0, y0, x1, y1, score, class

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the detections of a batch; boxes in pixels of the original image.

        Raises:
            ValueError: a predicted class is not one of the split's.
        """
        for record, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            classes = instances.pred_classes.numpy()
            if classes.size and not 0 <= classes.min() <= classes.max() < self._num_classes:
                raise ValueError(
                    f"The model predicts class {classes.max()}, but {self.dataset_name} has {self._num_classes} "
                    f"classes, numbered from 0. Set the number of classes of the model's head (NUM_CLASSES) to "
                    f"{self._num_classes}."
                )
            columns = (instances.pred_boxes.tensor.numpy(), instances.scores.numpy()[:, None], classes[:, None])
            self._image_ids.append(record["image_id"])
            self._rows.append(np.concatenate(columns, axis=1).astype(np.float32))

    def evaluate(self) -> OrderedDict:
        """Score what was gathered; has to be called by all ranks.

        Returns:
            On the main rank
            ``bbox``: COCO's AP, AP50, AP75, APs, APm, APl and, per class, AP-<class>;
            ``voc``: AP50, the mean over classes, and AP50-<class>, by VOC 2007's 11 points at IoU 0.5;
            ``boxes``: class -> number of ground-truth boxes; ``images``: {"count": number of images}.
            APs are floats from 0 to 100, NaN where there is no ground truth; means are over the other classes. COCO's
            sizes go by the area of the box. Other ranks return an empty dict.

        Raises:
            ValueError: a detection is on an image that is not in the split.
        """
        comm.synchronize()
        gathered = comm.gather((self._image_ids, _stack(self._rows), [len(r) for r in self._rows]), dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        image_ids, rows = _merge(gathered)
        if self._predictions_file:
            # Before anything that may fail: inference took long.
            save_predictions(self._predictions_file, image_ids, rows, self.dataset_name)
        truth = load_ground_truth(self.dataset_name)
        detections = self._locate(truth, image_ids, rows)
        return score_detections(truth, detections)

    def _locate(self, truth: GroundTruth, image_ids: list[Hashable], rows: list[np.ndarray]) -> Detections:
        position = {image_id: i for i, image_id in enumerate(truth.image_ids)}
        unknown = [i for i in image_ids if i not in position]
        if unknown:
            raise ValueError(
                f"Detections on image_id {unknown[0]!r}, which is not in {self.dataset_name}; the evaluator's "
                "split and the data loader's have to be the same."
            )
        if len(set(image_ids)) < len(position):
            logger.warning(
                f"{self.dataset_name}: detections were made on {len(set(image_ids))} of {len(position)} images; "
                "the others count as images without any detection."
            )
        number = [len(r) for r in rows]
        table = _stack(rows).astype(np.float64)
        if not len(table):
            logger.warning(f"{self.dataset_name}: no detections at all, so every AP is 0.")
        return Detections(
            image=np.repeat(np.array([position[i] for i in image_ids], dtype=np.int64), number),
            category=table[:, 5].astype(np.int64),
            xyxy=table[:, :4],
            score=table[:, 4],
        )


def score_detections(truth: GroundTruth, detections: Detections) -> OrderedDict:
    """The results of :meth:`WeatherEvaluator.evaluate` for boxes at hand."""
    coco = coco_average_precision(truth, detections)
    voc = voc_average_precision(truth, detections)
    bbox = {name: _mean(coco[:, i]) for i, name in enumerate(COCO_METRICS)}
    bbox.update({f"AP-{name}": float(ap) for name, ap in zip(truth.classes, coco[:, 0])})
    results = OrderedDict(bbox=bbox)
    results["voc"] = {"AP50": _mean(voc), **{f"AP50-{name}": float(ap) for name, ap in zip(truth.classes, voc)}}
    results["boxes"] = truth.counts()
    results["images"] = {"count": len(truth.image_ids)}
    return results


def coco_average_precision(truth: GroundTruth, detections: Detections) -> np.ndarray:
    """COCO's AP, AP50, AP75, APs, APm, APl of every class.

    Classes are evaluated one after the other, which gives the same numbers as all at once, as COCO's matching and its
    limit of 100 detections per image are per class, and needs memory for the detections of one class only.

    Returns:
        (len(truth.classes), 6) float64, 0 to 100; NaN where a class has no ground truth (of that size).
    """
    images = [{"id": i} for i in range(1, len(truth.image_ids) + 1)]
    with _garbage_collection_paused():
        return np.stack([_coco_class_ap(truth, detections, c, images) for c in range(len(truth.classes))])


def save_predictions(
    path: str | os.PathLike, image_ids: list[Hashable], rows: list[np.ndarray], dataset_name: str
) -> None:
    """Write detections in COCO's results format, one per line, atomically.

    Args:
        path: json file.
        image_ids: the image of each array of rows, as in the data set's records.
        rows: per image (n, 6): x0, y0, x1, y1, score, class number. The file holds boxes as XYWH_ABS, and the class
            by its id in the data set's json file if there is one, else by its number, as COCOEvaluator does.
    """
    category_ids = dataset_category_ids(dataset_name)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "["
        for image_id, row in itertools.chain.from_iterable(
            zip(itertools.repeat(i), r) for i, r in zip(image_ids, rows)
        ):
            box = BoxMode.convert(row[:4].tolist(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            entry = {
                "image_id": image_id,
                "category_id": category_ids[int(row[5])],
                "bbox": box,
                "score": float(row[4]),
            }
            file.write(f"{separator}\n{json.dumps(entry)}")
            separator = ","
        file.write("\n]\n" if separator == "," else "[]\n")
    logger.info(f"Saved {sum(map(len, rows))} detections to {path}.")


def dataset_category_ids(dataset_name: str) -> dict[int, int]:
    """Class number -> category id in COCO files of this data set."""
    DatasetCatalog.get(dataset_name)  # a COCO json file tells its ids when it is read
    metadata = MetadataCatalog.get(dataset_name)
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is None:
        return {i: i for i in range(len(metadata.thing_classes))}
    return {number: category_id for category_id, number in mapping.items()}


def _coco_class_ap(truth: GroundTruth, detections: Detections, category: int, images: list[dict]) -> np.ndarray:
    of_class = truth.category == category
    annotations = _coco_annotations(truth.image[of_class], truth.xyxy[of_class], iscrowd=truth.ignored[of_class])
    found = detections.of_class(category)
    results = _coco_annotations(found.image, found.xyxy, score=found.score)
    evaluation = COCOeval_faster(
        _coco_index(images, annotations), _coco_index(images, results), "bbox", print_function=logger.debug
    )
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU thresholds 0.50:0.05:0.95, recalls, classes, areas all/small/medium/large, limits); -1 says "no ground truth"
    precision = np.asarray(evaluation.eval["precision"])[:, :, 0, :, 0]
    per_threshold = np.where(precision < 0, np.nan, 100 * precision).mean(axis=1)  # (thresholds, areas)
    overall = per_threshold.mean(axis=0)
    return np.array([overall[0], per_threshold[0, 0], per_threshold[5, 0], *overall[1:]])


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """COCO wants a dict for each box; while they are made, the collector would walk over all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _coco_annotations(image: np.ndarray, xyxy: np.ndarray, **extra: np.ndarray) -> list[dict]:
    """Boxes as COCO annotations; ids start at 1, because COCO's matching reads 0 as "no match"."""
    size = xyxy[:, 2:] - xyxy[:, :2]
    columns = {
        "id": range(1, len(image) + 1),
        "image_id": (image + 1).tolist(),
        "bbox": np.concatenate([xyxy[:, :2], size], axis=1).tolist(),
        "area": np.prod(size, axis=1).tolist(),
        "iscrowd": [0] * len(image),
        **{name: column.astype(float if name == "score" else int).tolist() for name, column in extra.items()},
    }
    return [dict(zip(columns, row), category_id=1) for row in zip(*columns.values())]


def _coco_index(images: list[dict], annotations: list[dict]) -> COCO:
    index = COCO()
    index.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    index.createIndex()
    return index


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros((0, 6), dtype=np.float32), *rows])


def _merge(gathered: list[tuple]) -> tuple[list[Hashable], list[np.ndarray]]:
    image_ids, rows = [], []
    for ids, table, number in gathered:
        image_ids.extend(ids)
        rows.extend(np.split(table, np.cumsum(number)[:-1]) if number else [])
    return image_ids, rows


def _mean(values: np.ndarray) -> float:
    """The mean over classes that have ground truth; NaN if none has."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
