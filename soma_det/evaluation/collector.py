"""Gathers the detections on one split, once for all evaluators that score them."""

import logging
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from soma_det.evaluation.detections import DETECTIONS_FILE, Detections, GroundTruth, load_ground_truth, save_detections

logger = logging.getLogger(__name__)


class DetectionCollector(DatasetEvaluator):
    """Takes in the detections on a registered split, saves them, and holds them with the split's ground truth.

    Evaluators that score them read :attr:`gathered` and stand after the collector in Detectron2's DatasetEvaluators,
    which calls its members in order. During inference each rank holds 24 bytes per detection. Works on every data set
    that is registered with ``thing_classes`` and whose records have an ``image_id``.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike | None = None):
        """Arguments as of :func:`~soma_det.evaluation.build_evaluator`."""
        self.dataset_name = dataset_name
        self._file = Path(output_dir, dataset_name, DETECTIONS_FILE) if output_dir else None
        self._num_classes = len(MetadataCatalog.get(dataset_name).thing_classes)
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._gathered: tuple[GroundTruth, Detections] | None = None
        self._image_ids: list[Hashable] = []
        self._tables: list[np.ndarray] = []  # per image (n, 6) float32: x0, y0, x1, y1, score, class

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
                    f"classes, numbered from 0. Set NUM_CLASSES of the model's head to {self._num_classes}."
                )
            columns = (instances.pred_boxes.tensor.numpy(), instances.scores.numpy()[:, None], classes[:, None])
            self._image_ids.append(record["image_id"])
            self._tables.append(np.concatenate(columns, axis=1).astype(np.float32))

    def evaluate(self) -> OrderedDict:
        """Bring the detections of all ranks together and save them; all ranks must call it.

        Returns:
            On the main rank ``boxes``: class -> number of ground-truth boxes that count, and ``images``:
            {"count": number of images in the split}. Other ranks return an empty dict.

        Raises:
            ValueError: a detection is on an image that is not in the split.
        """
        comm.synchronize()
        gathered = comm.gather((self._image_ids, [len(t) for t in self._tables], _stack(self._tables)), dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        ids, counts, tables = zip(*gathered)
        image_ids, table = list(chain(*ids)), _stack(tables)
        image = np.repeat(np.arange(len(image_ids)), list(chain(*counts)))
        corners, score, category = np.split(table.astype(float), [4, 5], axis=1)
        detections = Detections(image, category[:, 0].astype(np.int64), corners, score[:, 0])
        if self._file:  # before anything that can fail, because inference took long
            save_detections(self._file, detections, image_ids, self.dataset_name)
        truth = load_ground_truth(self.dataset_name)
        self._gathered = truth, self._locate(detections, image_ids, truth)
        return OrderedDict(boxes=truth.counts(), images={"count": len(truth.image_ids)})

    @property
    def gathered(self) -> tuple[GroundTruth, Detections]:
        """The split's ground truth and the detections of all ranks, on the main rank after :meth:`evaluate`."""
        if self._gathered is None:
            raise RuntimeError("The detections are not gathered: call evaluate() of their DetectionCollector before.")
        return self._gathered

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
        return replace(detections, image=np.array([position[i] for i in image_ids], dtype=np.int64)[detections.image])


def _stack(tables: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros((0, 6), dtype=np.float32), *tables])
