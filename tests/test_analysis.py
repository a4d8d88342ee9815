"""Matched boxes, precision by recall, confusion, TIDE's kinds of errors, calibration: numbers worked out by hand."""

import numpy as np
import pytest

from soma_det.evaluation.analysis import confusion, extreme_images, image_f1, match_boxes, precision_curves
from soma_det.evaluation.calibration import calibration
from soma_det.evaluation.coco_evaluation import evaluate_coco
from soma_det.evaluation.detections import Detections, GroundTruth
from soma_det.evaluation.error_kinds import BACKGROUND, BOTH, CLASS, DUPLICATE, LOCATION, classify, error_kinds

CAR, PERSON, BUS = range(3)
CLASSES = ("car", "person", "bus")
# One image, boxes of 10 x 10 pixels in a row; here are their left sides.
TRUTH = [(CAR, 0), (CAR, 20), (PERSON, 40), (BUS, 60), (BUS, 100)]
FOUND = [  # class, left side, confidence, what it is
    (BUS, 60, 0.95, -1),
    (CAR, 0, 0.9, -1),
    (CAR, 0, 0.8, DUPLICATE),
    (CAR, 25, 0.7, LOCATION),  # IoU 1/3 with the second car
    (CAR, 40, 0.6, CLASS),
    (CAR, 80, 0.5, BACKGROUND),
    (PERSON, 15, 0.4, BOTH),  # IoU 1/3 with the second car, 0 with the person
]


def boxes(lefts, width=10.0):
    left = np.array(lefts, dtype=float)
    zero = np.zeros_like(left)
    return np.stack([left, zero, left + width, zero + 10], axis=1)


def truth_of(rows, images=1, image=None, ignored=()):
    number = np.arange(len(rows))
    return GroundTruth(
        tuple(range(images)),
        CLASSES,
        np.zeros(len(rows), dtype=np.int64) if image is None else np.array(image),
        np.array([row[0] for row in rows], dtype=np.int64),
        boxes([row[1] for row in rows]),
        np.isin(number, ignored),
    )


def found_of(rows, image=None):
    return Detections(
        np.zeros(len(rows), dtype=np.int64) if image is None else np.array(image),
        np.array([row[0] for row in rows], dtype=np.int64),
        boxes([row[1] for row in rows]),
        np.array([row[2] for row in rows], dtype=float),
    )


@pytest.fixture
def matched():
    return match_boxes(truth_of(TRUTH), found_of(FOUND))


def test_a_box_is_found_once_by_the_most_confident_detection_of_its_class():
    found = found_of([(CAR, 1, 0.3), (CAR, 2, 0.9), (PERSON, 0, 0.95), (CAR, 0, 0.5)])
    matched = match_boxes(truth_of([(CAR, 0)]), found)
    assert matched.detections.score.tolist() == [0.95, 0.9, 0.5, 0.3] and matched.box.tolist() == [-1, 0, -1, -1]


def test_detections_on_ignored_boxes_count_for_nothing():
    truth = truth_of([(CAR, 0), (CAR, 50)], ignored=[0])
    matched = match_boxes(truth, found_of([(CAR, 0, 0.9), (CAR, 1, 0.8), (CAR, 50, 0.7)]))
    assert matched.box.tolist() == [1] and matched.detections.score.tolist() == [0.7]
    assert not len(match_boxes(truth, found_of([(CAR, 0, 0.9)])).box)


def test_precision_by_recall_is_that_worked_out_by_hand():
    matched = match_boxes(truth_of([(CAR, 0), (CAR, 20)]), found_of([(CAR, 0, 0.9), (CAR, 0, 0.8), (CAR, 20, 0.7)]))
    car, person, bus = precision_curves(matched)
    # One of two boxes at precision 1, both at 2/3; levels 0 to 0.50 are 51 of 101.
    np.testing.assert_allclose(car, [1.0] * 51 + [2 / 3] * 50)
    assert np.isnan(person).all() and np.isnan(bus).all()


def test_the_area_below_the_curves_is_the_ap50_of_cocos_evaluation():
    rng = np.random.default_rng(0)
    rows = [(int(c), float(x)) for c, x in zip(rng.integers(0, 3, 120), rng.uniform(0, 150, 120))]
    image = rng.integers(0, 12, 120)
    truth = truth_of(rows, 12, image, ignored=range(0, 120, 9))
    moved = [(c, x + rng.normal(0, 3), rng.uniform()) for c, x in rows for _ in range(2)]
    found = found_of(moved, np.repeat(image, 2))
    coco = evaluate_coco(truth, found).eval["precision"][0, :, :, 0, 0].mean(axis=0)
    assert 0.1 < coco.min() < coco.max() < 0.95
    np.testing.assert_allclose(precision_curves(match_boxes(truth, found)).mean(axis=1), coco, atol=1e-9)


def test_confusion_is_that_worked_out_by_hand(matched):
    expected = np.zeros((4, 4), dtype=int)
    expected[CAR, CAR] = expected[BUS, BUS] = 1
    expected[PERSON, CAR] = 1
    expected[3, CAR] = 2  # the duplicate and the inexact box
    expected[CAR, 3] = expected[BUS, 3] = 1
    np.testing.assert_array_equal(confusion(matched, 0.55), expected)


def test_of_boxes_that_overlap_each_detection_finds_the_one_of_its_class():
    truth = truth_of([(CAR, 0), (PERSON, 2)])  # a bike and its rider, so to speak: IoU 2/3
    table = confusion(match_boxes(truth, found_of([(PERSON, 0, 0.9), (CAR, 2, 0.8)])), 0.5)
    assert table[CAR, CAR] == table[PERSON, PERSON] == 1 and table.sum() == 2


def test_rows_of_the_confusion_hold_every_box_and_columns_every_detection(matched):
    table = confusion(matched, 0.0)
    assert table.sum(axis=1)[:3].tolist() == [2, 1, 2] and table.sum(axis=0)[:3].tolist() == [5, 1, 1]


def test_every_error_has_its_kind(matched):
    kind, target = classify(matched)
    assert kind.tolist() == [row[3] for row in FOUND]
    assert target.tolist() == [-1, -1, -1, 1, 2, -1, -1]


def test_the_costs_of_errors_are_those_worked_out_by_hand(matched):
    result = error_kinds(matched)
    half = 51 / 101  # AP of one of two boxes found at precision 1
    assert result.ap50 == pytest.approx(100 * (half + 0 + half) / 3)
    expected = {
        "class": 1 / 3,  # the person is found at precision 1
        "location": 50 * 2 / 3 / 101 / 3,  # the second car is found at precision 2/3
        "both": 0,
        "duplicate": 0,
        "background": 0,
        "missed": (1 - half) / 3,  # the second bus alone: the second car and the person are meant by other errors
        "false alarms": 0,
        "not found": 2 * (1 - half) / 3,  # a class of which nothing is found stays at 0
    }
    assert result.cost == pytest.approx({kind: 100 * value for kind, value in expected.items()}, abs=1e-9)
    assert result.count == {"class": 1, "location": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 1}


def test_removing_duplicates_above_a_hit_pays():
    truth = truth_of([(CAR, 0), (CAR, 20)])
    matched = match_boxes(truth, found_of([(CAR, 0, 0.9), (CAR, 0, 0.8), (CAR, 20, 0.7)]))
    assert error_kinds(matched).cost["duplicate"] == pytest.approx(100 * 50 / 101 / 3)


def test_splits_without_boxes_or_detections_have_no_scores_and_no_errors():
    nothing = error_kinds(match_boxes(truth_of([]), found_of([])))
    assert np.isnan(nothing.ap50) and set(nothing.count.values()) == {0}
    silent = match_boxes(truth_of(TRUTH), found_of([]))
    assert error_kinds(silent).ap50 == 0 and error_kinds(silent).count["missed"] == 5
    assert confusion(silent, 0.5)[:, 3].tolist() == [2, 1, 2, 0]
    alarms = match_boxes(truth_of([]), found_of(FOUND))
    assert confusion(alarms, 0.0)[3].tolist() == [5, 1, 1, 0]


def test_f1_of_images_is_that_worked_out_by_hand():
    truth = truth_of([(CAR, 0), (CAR, 20), (CAR, 0)], images=4, image=[0, 0, 1])
    found = found_of([(CAR, 0, 0.9), (CAR, 50, 0.8), (CAR, 0, 0.2), (CAR, 0, 0.9)], image=[0, 0, 1, 2])
    scores = image_f1(match_boxes(truth, found), 0.5)
    np.testing.assert_array_equal(scores, [2 / 4, 0, 0, np.nan])


def test_the_best_and_the_worst_images_are_different_ones_with_many_boxes():
    scores, number = np.array([1.0, 1.0, 0.0, np.nan, 0.0]), np.array([2, 7, 1, 0, 3])
    assert extreme_images(scores, number, 2) == ([1, 0], [4, 2])
    assert extreme_images(scores, number, 3) == ([1, 0, 4], [2])
    assert extreme_images(scores, number, 0) == ([], [])


def test_calibration_is_that_worked_out_by_hand():
    result = calibration(np.array([0.95, 0.91, 0.2, 0.01]), np.array([True, False, False, True]))
    assert result.count.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert result.confidence[9] == pytest.approx(0.93) and result.precision[9] == 0.5
    assert result.expected == pytest.approx((2 * 0.43 + 0.2) / 3) and result.largest == pytest.approx(0.43)
    assert result.excess == pytest.approx((0.95 + 0.91 + 0.2) / 3 - 1 / 3)


def test_confidences_that_equal_the_precision_are_calibrated():
    assert calibration(np.full(4, 0.75), np.array([True, True, True, False])).expected == 0
    assert np.isnan(calibration(np.zeros(0), np.zeros(0, dtype=bool)).expected)
    assert calibration(np.ones(3), np.ones(3, dtype=bool)).count[-1] == 3
