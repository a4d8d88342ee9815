"""COCO's average precisions by Detectron2's COCOEvaluator, computed with faster-coco-eval."""

import contextlib
import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster

from soma_det.evaluation.detections import DETECTIONS_FILE, Detections, GroundTruth, load_ground_truth, save_detections

MAX_DETECTIONS = 100  # per image and class, by COCO's rules
BLOCK = 500  # images whose boxes are dicts at a time
CLASS_AXIS = {"precision": 2, "recall": 1}  # of what COCO's evaluation accumulates; areas are the axis after it

logger = logging.getLogger(__name__)


class CocoEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for boxes, with its metrics and log; other evaluators can score :attr:`gathered` too.

    COCOEvaluator itself keeps a dict per detection, does not evaluate a split without detections, and converts other
    data sets to a cached COCO json file, which outlives changes of the data and rounds the boxes. This one holds 24
    bytes per detection and takes every split with ``thing_classes`` whose records have an ``image_id``.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike | None = None):
        """Arguments as of :func:`~soma_det.evaluation.build_evaluator`."""
        # Not COCOEvaluator's own, which would convert the data set.
        self.dataset_name = dataset_name
        self._file = Path(output_dir, dataset_name, DETECTIONS_FILE) if output_dir else None
        self._num_classes = len(MetadataCatalog.get(dataset_name).thing_classes)
        self._logger = logger
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._gathered: tuple[GroundTruth, Detections] | None = None
        self._image_ids: list[Hashable] = []
        self._counts: list[int] = []  # detections of each image
        # x0, y0, x1, y1, score and class of each, float32. Not an array for each image: small pieces that stay keep
        # the memory around them from being used again, 36 KiB for an image.
        self._rows = bytearray()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in the detections of a batch; boxes in pixels of the original image.

        Raises:
            RuntimeError: the detections so far were scored already, and :meth:`reset` was not called.
            ValueError: a predicted class is not one of the split's.
        """
        if self._gathered is not None:
            raise RuntimeError("The detections so far were scored already: call reset() before the next ones.")
        for record, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            classes = instances.pred_classes.numpy()
            if classes.size and not 0 <= classes.min() <= classes.max() < self._num_classes:
                raise ValueError(
                    f"The model predicts class {classes.max()}, but {self.dataset_name} has {self._num_classes} "
                    f"classes, numbered from 0. Set NUM_CLASSES of the model's head to {self._num_classes}."
                )
            columns = (instances.pred_boxes.tensor.numpy(), instances.scores.numpy()[:, None], classes[:, None])
            self._image_ids.append(record["image_id"])
            self._counts.append(len(instances))
            self._rows += np.concatenate(columns, axis=1).astype(np.float32).tobytes()

    def evaluate(self) -> OrderedDict:
        """Bring the detections of all ranks together, save and score them; all ranks must call it.

        Returns:
            On the main rank ``boxes``: class -> number of ground-truth boxes that count; ``images``: {"count": number
            of images in the split}; and ``bbox``: AP, AP50, AP75, APs, APm, APl and, per class, AP-<class>, 0 to 100,
            NaN without ground truth; means leave NaN out. Sizes go by the box's area. Other ranks: an empty dict.

        Raises:
            ValueError: a detection is on an image that is not in the split.
        """
        gathered = self.gather()
        if gathered is None:
            return OrderedDict()
        truth = load_ground_truth(self.dataset_name)
        self._gathered = truth, detections = truth, self._locate(*gathered, truth)
        bbox = self._derive_coco_results(evaluate_coco(truth, detections), "bbox", truth.classes)
        if len(truth.classes) == 1:  # Detectron2 leaves it out as it equals the mean
            bbox[f"AP-{truth.classes[0]}"] = bbox["AP"]
        return OrderedDict(boxes=truth.counts(), images={"count": len(truth.image_ids)}, bbox=bbox)

    @property
    def gathered(self) -> tuple[GroundTruth, Detections]:
        """The split's ground truth and the detections of all ranks, on the main rank after :meth:`evaluate`."""
        if self._gathered is None:
            raise RuntimeError("The detections are not gathered: call evaluate() of their CocoEvaluator before.")
        return self._gathered

    def gather(self) -> tuple[Detections, list[Hashable]] | None:
        """Bring the detections of all ranks together and save them; the images that they count. None on other ranks."""
        comm.synchronize()
        ranks = comm.gather((self._image_ids, self._counts, self._rows), dst=0)
        if not comm.is_main_process():
            return None
        ids, counts, rows = zip(*ranks)
        image_ids = list(chain(*ids))
        image = np.repeat(np.arange(len(image_ids), dtype=np.int32), list(chain(*counts)))
        # A copy only where there are several ranks: what grows with the images stays at 32 bytes a detection.
        table = np.frombuffer(rows[0] if len(rows) == 1 else b"".join(rows), dtype=np.float32).reshape(-1, 6)
        detections = Detections(image, table[:, 5].astype(np.int32), table[:, :4], table[:, 4])
        if self._file:  # before anything that can fail, because inference took long
            save_detections(self._file, detections, image_ids, self.dataset_name)
        return detections, image_ids

    def _locate(self, detections: Detections, image_ids: Sequence[Hashable], truth: GroundTruth) -> Detections:
        """The detections with ``image`` as a position in the ground truth's images."""
        position = {image_id: i for i, image_id in enumerate(truth.image_ids)}
        unknown = [i for i in image_ids if i not in position]
        if unknown:
            raise ValueError(
                f"Detections on image_id {unknown[0]!r}, which is not in {self.dataset_name}; the evaluator and the "
                "data loader must have the same split."
            )
        if (found := len(set(image_ids))) < len(position):
            logger.warning(
                f"{self.dataset_name}: detections were made on {found} of {len(position)} images; "
                "the others count as images without any detection."
            )
        if not len(detections):
            logger.warning(f"{self.dataset_name}: no detections at all, so every AP is 0.")
        return replace(detections, image=np.array([position[i] for i in image_ids], dtype=np.int32)[detections.image])


def evaluate_coco(truth: GroundTruth, detections: Detections) -> COCOeval_faster:
    """Match and summarize by COCO's rules.

    Classes and areas are evaluated one by one, and images in blocks: COCO's code wants a dict for each box and keeps
    ten matches of each detection. The numbers are the same as of all at once, because its matching and its limit of
    detections are per image, class and area.

    Returns:
        an evaluation with ``stats``, as pycocotools has them, and ``eval["precision"]``, (10, 101, classes, 4, 1): IoU
        thresholds, recalls, classes, areas (all, small, medium, large); 0 to 1, -1 where there is no ground truth.
    """
    with _garbage_collection_paused():
        parts = [_evaluate_class(truth, detections, category) for category in range(len(truth.classes))]
    whole = _evaluation()
    whole.eval = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in CLASS_AXIS.items()}
    whole.summarize()
    return whole


def _evaluate_class(truth: GroundTruth, detections: Detections, category: int) -> dict:
    rows = list(zip(*(_rows_of_blocks(part, category, len(truth.image_ids)) for part in (truth, detections))))
    parts = [_evaluate_area(truth, detections, rows, area) for area in range(len(_evaluation().params.areaRng))]
    return {name: np.concatenate([part[name] for part in parts], axis + 1) for name, axis in CLASS_AXIS.items()}


def _evaluate_area(truth: GroundTruth, detections: Detections, rows: list, area: int) -> dict:
    matches, images = [], range(1, len(truth.image_ids) + 1)
    for block, (known, found) in enumerate(rows):
        ids = images[block * BLOCK : (block + 1) * BLOCK]
        part = _evaluation(
            _coco_index(truth, known, ids, iscrowd=truth.ignored[known].astype(int)),
            _coco_index(detections, found, ids, score=detections.score[found].astype(np.float64)),
            area,
        )
        part.evaluate()
        matches += part._evalImgs_cpp  # one for each image, in their order
    whole = _evaluation(area=area)
    whole.params.imgIds, whole.params.catIds = list(images), [1]
    whole._paramsEval, whole._evalImgs_cpp = whole.params, matches
    whole.accumulate()
    return {name: np.asarray(whole.eval[name]) for name in CLASS_AXIS}


def _rows_of_blocks(boxes: GroundTruth | Detections, category: int, images: int) -> list[np.ndarray]:
    """Which boxes are of a class, sorted by image, for each block of images."""
    rows = np.flatnonzero(boxes.category == category)
    rows = rows[np.argsort(boxes.image[rows], kind="stable")]
    return np.split(rows, np.searchsorted(boxes.image[rows], np.arange(BLOCK, images, BLOCK)))


def _evaluation(truth: COCO | None = None, detections: COCO | None = None, area: int | None = None) -> COCOeval_faster:
    """Of one class; of one area or of all."""
    evaluation = COCOeval_faster(truth, detections, "bbox", print_function=logger.debug, separate_eval=True)
    params = evaluation.params
    params.maxDets = [MAX_DETECTIONS]
    if area is not None:
        params.areaRng, params.areaRngLbl = [params.areaRng[area]], [params.areaRngLbl[area]]
    return evaluation


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """COCO wants a dict for each box; while these are made, the collector would check all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _coco_index(boxes: GroundTruth | Detections, rows: np.ndarray, image_ids: range, **extra: np.ndarray) -> COCO:
    """Some boxes as COCO's code wants them; ids start at 1, since its matching reads 0 as "no match"."""
    xyxy = boxes.xyxy[rows].astype(np.float64)
    size = xyxy[:, 2:] - xyxy[:, :2]
    columns = {"image_id": boxes.image[rows] + 1, "bbox": np.hstack([xyxy[:, :2], size]), "area": size.prod(axis=1)}
    columns |= {"id": np.arange(1, len(rows) + 1), **extra}
    lists = [column.tolist() for column in columns.values()]
    annotations = [{"category_id": 1, "iscrowd": 0, **dict(zip(columns, row))} for row in zip(*lists)]
    index = COCO()
    index.dataset = {"images": [{"id": i} for i in image_ids], "annotations": annotations, "categories": [{"id": 1}]}
    index.createIndex()
    return index
