"""The COCO metric of soma_det beside pycocotools."""

import argparse
import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.report import Limit, Report
from benchmarks.timing import interleave
from soma_det.config import CLASSES
from soma_det.evaluation.coco_evaluation import evaluate_coco
from soma_det.evaluation.detections import Detections, GroundTruth

OURS, THEIRS = "soma_det", "pycocotools"
BOXES = 12  # ground-truth boxes in an image
SIZE = (720, 1280)  # (H, W), pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=5000, help="default: %(default)s")
    parser.add_argument("--detections", type=int, default=100, help="in each image (default: %(default)s)")


def run(args: argparse.Namespace) -> Report:
    """Score the same detections with both."""
    truth, detections = random_boxes(args.images, args.detections, args.seed)
    scores = {}
    steps = {
        OURS: [("score", lambda: scores.update({OURS: score_with_soma_det(truth, detections)}))],
        THEIRS: [("score", lambda: scores.update({THEIRS: score_with_pycocotools(truth, detections)}))],
    }
    seconds = {name: parts["score"].median for name, parts in interleave(steps, args.rounds, warmup=0).items()}
    report = Report("The COCO metric, from boxes in memory to average precisions", vars(args))
    for name, second in seconds.items():
        mean = np.nanmean(scores[name], axis=0)
        report.rows.append({"implementation": name, "seconds": second, "AP": float(mean[0]), "AP50": float(mean[1])})
    difference = float(np.nanmax(np.abs(scores[OURS] - scores[THEIRS])))
    report.limits = [
        Limit("times faster than pycocotools", seconds[THEIRS] / seconds[OURS], 5.0, at_most=False),
        Limit("largest difference of any class and metric, of 100", difference, 1e-6),
    ]
    report.notes = ["AP, AP50, AP75, APs, APm and APl of every class are compared."]
    return report


def random_boxes(images: int, per_image: int, seed: int) -> tuple[GroundTruth, Detections]:
    """Boxes of all sizes and, as detections, some of them displaced and many that are wrong."""
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), BOXES)
    category = random.integers(0, len(CLASSES), len(image))
    xyxy = _boxes(random, len(image))
    truth = GroundTruth(
        classes=list(CLASSES),
        image_ids=list(range(images)),
        image=image,
        category=category,
        xyxy=xyxy,
        ignored=np.zeros(len(image), dtype=bool),
    )
    near = random.integers(0, len(image), images * per_image)
    near = (near % BOXES) + BOXES * np.repeat(np.arange(images), per_image)
    found = xyxy[near] + random.normal(0, 8, (len(near), 4))
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    wrong = random.random(len(near)) < 0.7
    found[wrong] = _boxes(random, int(wrong.sum()))
    return truth, Detections(image=image[near], category=category[near], xyxy=found, score=random.random(len(near)))


def score_with_soma_det(truth: GroundTruth, detections: Detections) -> np.ndarray:
    """AP, AP50, AP75, APs, APm, APl of every class, 0 to 100: (classes, 6), NaN without ground truth."""
    return _per_class(evaluate_coco(truth, detections).eval["precision"])


def score_with_pycocotools(truth: GroundTruth, detections: Detections) -> np.ndarray:
    """As :func:`score_with_soma_det`, in the usual way: all classes at once, dictionaries in, one table out."""
    annotations = _annotations(truth.image, truth.xyxy, truth.category)
    results = _annotations(detections.image, detections.xyxy, detections.category, detections.score)
    categories = [{"id": number, "name": name} for number, name in enumerate(truth.classes)]
    images = [{"id": number} for number in range(1, len(truth.image_ids) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, 100]
        evaluation.evaluate()
        evaluation.accumulate()
    return _per_class(evaluation.eval["precision"])


def _per_class(precision: np.ndarray) -> np.ndarray:
    """(IoU thresholds, recalls, classes, areas, limits of detections) -> (classes, 6)."""
    precision = precision[..., -1]
    per_class = np.where(precision < 0, np.nan, 100 * precision).mean(axis=1)  # (thresholds, classes, areas)
    overall = per_class.mean(axis=0)
    return np.column_stack([overall[:, 0], per_class[0, :, 0], per_class[5, :, 0], overall[:, 1:]])


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYXY, pixels."""
    height, width = SIZE
    extent = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
    corner = random.random((count, 2)) * np.maximum([width, height] - extent, 1)
    return np.concatenate([corner, corner + extent], axis=1)


def _annotations(image: np.ndarray, xyxy: np.ndarray, category: np.ndarray, score: np.ndarray | None = None) -> list:
    size = xyxy[:, 2:] - xyxy[:, :2]
    columns = {
        "id": range(1, len(image) + 1),
        "image_id": (image + 1).tolist(),
        "category_id": category.tolist(),
        "bbox": np.concatenate([xyxy[:, :2], size], axis=1).tolist(),
        "area": np.prod(size, axis=1).tolist(),
        "iscrowd": [0] * len(image),
    }
    if score is not None:
        columns["score"] = score.tolist()
    return [dict(zip(columns, row)) for row in zip(*columns.values())]
