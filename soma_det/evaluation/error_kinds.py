"""What kinds of errors cost how much AP, by TIDE.

Bolya et al., A General Toolbox for Identifying Object Detection Errors, ECCV 2020, arXiv 2008.08115. Each false alarm
is of one kind. A kind's cost is the rise of AP50 when all of its errors are repaired and no other. Costs do not add up
to what is missing to 100. The figures are those of the packages tidecv and hotcoco, but for classes without ground
truth, which are left out here.
"""

from dataclasses import dataclass

import numpy as np

from soma_det.evaluation.analysis import IOU_THRESHOLD, Matched, precision_curve
from soma_det.evaluation.voc_evaluation import pairwise_iou, rows_of_each

BACKGROUND_IOU = 0.1  # less overlap than this with any box is background
KINDS = {
    "class": "found an object, called it the wrong class",
    "location": f"right class, but IoU from {BACKGROUND_IOU} to {IOU_THRESHOLD}",
    "both": "wrong class and inexact box",
    "duplicate": "found again what a more confident detection had found",
    "background": f"nothing there: IoU below {BACKGROUND_IOU} with every box",
    "missed": "boxes that no detection found, not even as a class or location error",
}
CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))


@dataclass(frozen=True)
class ErrorKinds:
    """Errors of one split.

    Attributes:
        ap50: mean over the classes with ground truth, 0 to 100; NaN without any.
        cost: kind -> AP50 that repairing it would add, 0 to 100; "false alarms" and "not found" repair all of them.
        count: kind -> number of errors.
    """

    ap50: float
    cost: dict[str, float]
    count: dict[str, int]


def error_kinds(matched: Matched) -> ErrorKinds:
    """Tell the kinds of errors of a split apart and what each costs."""
    kind, target = classify(matched)
    repairable = target >= 0
    repairable[repairable] = ~matched.found()[target[repairable]]
    missed = ~matched.truth.ignored & ~matched.found()
    missed[target[repairable]] = False
    repaired = _first_on_each(target, repairable)
    base = _mean_ap(matched, matched.hit)
    cost = {}
    for name, number in zip(KINDS, range(len(KINDS))):
        of_kind = kind == number
        if number == MISSED:
            cost[name] = _mean_ap(matched, matched.hit, left_out=missed) - base
        elif number in (CLASS, LOCATION):
            hit, kept = matched.hit | (of_kind & repaired), ~of_kind | repaired
            cost[name] = _mean_ap(matched, hit, kept, np.where(of_kind & repaired, target, -1)) - base
        else:
            cost[name] = _mean_ap(matched, matched.hit, ~of_kind) - base
    cost["false alarms"] = _mean_ap(matched, matched.hit, matched.hit) - base
    cost["not found"] = _mean_ap(matched, matched.hit, left_out=~matched.found()) - base
    count = {name: int((kind == number).sum()) for number, name in enumerate(KINDS)} | {"missed": int(missed.sum())}
    return ErrorKinds(base, cost, count)


def classify(matched: Matched) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each detection's error (N,), -1 for hits, and the box (N,) that a class or location error means."""
    truth, found = matched.truth, matched.found()
    kind, target = np.where(matched.hit, -1, BACKGROUND), np.full(len(matched.box), -1, dtype=np.int64)
    alarms, counted = np.flatnonzero(~matched.hit), np.flatnonzero(~truth.ignored)
    rows, truth_rows = rows_of_each(matched.detections.image[alarms]), rows_of_each(truth.image[counted])
    for image in rows.keys() & truth_rows.keys():
        mine, theirs = alarms[rows[image]], counted[truth_rows[image]]
        iou = pairwise_iou(matched.detections.xyxy[mine], truth.xyxy[theirs])
        same = matched.detections.category[mine][:, None] == truth.category[theirs]
        right, wrong, used = (np.where(mask, iou, 0) for mask in (same, ~same, same & found[theirs]))
        located = (right.max(axis=1) >= BACKGROUND_IOU) & (right.max(axis=1) <= IOU_THRESHOLD)
        kind[mine] = np.select(
            [
                located,
                wrong.max(axis=1) >= IOU_THRESHOLD,
                used.max(axis=1) >= IOU_THRESHOLD,
                iou.max(axis=1) <= BACKGROUND_IOU,
            ],
            [LOCATION, CLASS, DUPLICATE, BACKGROUND],
            BOTH,
        )
        means = np.where(located, right.argmax(axis=1), wrong.argmax(axis=1))
        target[mine] = np.where(np.isin(kind[mine], (CLASS, LOCATION)), theirs[means], -1)
    return kind, target


def _first_on_each(target: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(N,) bool: the most confident of the allowed rows with the same target."""
    rows = np.flatnonzero(allowed)
    first = np.zeros(len(target), dtype=bool)
    first[rows[np.unique(target[rows], return_index=True)[1]]] = True
    return first


def _mean_ap(
    matched: Matched,
    hit: np.ndarray,
    kept: np.ndarray | None = None,
    target: np.ndarray | None = None,
    left_out: np.ndarray | None = None,
) -> float:
    """AP50 (0 to 100) with other hits, without some detections, with the class of the box ``target``, without boxes."""
    truth, category = matched.truth, matched.detections.category
    if target is not None and (moved := target >= 0).any():
        category = category.copy()
        category[moved] = truth.category[target[moved]]
    kept = np.ones(len(hit), dtype=bool) if kept is None else kept
    counted = ~truth.ignored if left_out is None else ~truth.ignored & ~left_out
    scores = []
    for c, number in enumerate(truth.counts().values()):
        if number:
            left = int((counted & (truth.category == c)).sum())
            scores.append(precision_curve(hit[kept & (category == c)], left).mean() if left else 0.0)
    return 100 * float(np.mean(scores)) if scores else float("nan")
