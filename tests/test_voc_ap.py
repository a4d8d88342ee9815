"""VOC 2007 average precision, against numbers worked out by hand and against Detectron2's file-based evaluation."""

import numpy as np
import pytest
from detectron2.evaluation.pascal_voc_evaluation import voc_eval

import soma_det  # noqa: F401
from soma_det.evaluation.detections import Detections, GroundTruth
from soma_det.evaluation.voc_evaluation import best_overlap, eleven_point_ap, pairwise_iou, voc_average_precision

CAR = [10, 10, 50, 40]
FAR_CAR = [100, 10, 140, 40]
NOWHERE = [300, 300, 310, 310]


def truth(boxes, ignored=None, image=None, category=None, classes=("car",)):
    n = len(boxes)
    return GroundTruth(
        image_ids=list(range(100)),
        classes=classes,
        image=np.array(image or [0] * n, dtype=np.int64),
        category=np.array(category or [0] * n, dtype=np.int64),
        xyxy=np.array(boxes, dtype=float).reshape(-1, 4),
        ignored=np.array(ignored or [False] * n, dtype=bool),
    )


def detections(boxes, scores, image=None, category=None):
    n = len(boxes)
    return Detections(
        image=np.array(image or [0] * n, dtype=np.int64),
        category=np.array(category or [0] * n, dtype=np.int64),
        xyxy=np.array(boxes, dtype=float).reshape(-1, 4),
        score=np.array(scores, dtype=float),
    )


def test_one_false_alarm_between_two_hits_gives_the_hand_computed_ap():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: six levels up to 0.5 see 1, the five above see 2/3.
    found = detections([CAR, NOWHERE, FAR_CAR], [0.9, 0.8, 0.7])
    ap = voc_average_precision(truth([CAR, FAR_CAR]), found)
    assert ap == pytest.approx([100 * (6 + 5 * 2 / 3) / 11])


def test_order_of_the_rows_does_not_matter():
    found = detections([FAR_CAR, CAR, NOWHERE], [0.7, 0.9, 0.8])
    assert voc_average_precision(truth([CAR, FAR_CAR]), found) == pytest.approx([100 * (6 + 5 * 2 / 3) / 11])


def test_second_detection_of_a_box_is_a_false_alarm_even_if_another_box_is_free():
    # Both detections overlap the first box most; the second box has IoU 0.8 with them, but stays unclaimed.
    both = truth([[0, 0, 10, 10], [0, 0, 10, 8]])
    found = detections([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8])
    assert voc_average_precision(both, found) == pytest.approx([100 * 6 / 11])


def test_of_two_detections_of_a_box_the_higher_score_is_the_hit():
    # By score: hit, false alarm, hit. The other way round it would be false alarm, hit, hit.
    found = detections([[10, 10, 49, 40], CAR, FAR_CAR], [0.9, 0.8, 0.7])
    assert voc_average_precision(truth([CAR, FAR_CAR]), found) == pytest.approx([100 * (6 + 5 * 2 / 3) / 11])


def test_detection_of_an_ignored_box_counts_neither_way():
    # Three detections of the ignored box change nothing: one box, one hit, at precision 1.
    found = detections([FAR_CAR, FAR_CAR, FAR_CAR, CAR], [0.9, 0.8, 0.7, 0.6])
    assert voc_average_precision(truth([CAR, FAR_CAR], ignored=[False, True]), found) == pytest.approx([100])


def test_boxes_match_only_in_their_image_and_class():
    two = truth([CAR, CAR], image=[0, 1], category=[0, 1], classes=("car", "bus"))
    swapped = detections([CAR, CAR], [0.9, 0.8], image=[1, 0], category=[0, 1])
    assert voc_average_precision(two, swapped).tolist() == [0, 0]


def test_overlap_of_exactly_one_half_is_no_match():
    assert voc_average_precision(truth([[0, 0, 10, 10]]), detections([[0, 0, 10, 5]], [0.9])).tolist() == [0]
    assert voc_average_precision(truth([[0, 0, 10, 10]]), detections([[0, 0, 10, 5.01]], [0.9])).tolist() == [100]


def test_no_detections_is_zero_and_no_ground_truth_is_nan():
    split = truth([CAR, CAR], ignored=[False, True], category=[0, 1], classes=("car", "bus", "bike"))
    ap = voc_average_precision(split, detections([], []))
    np.testing.assert_array_equal(ap, [0, np.nan, np.nan])


def test_recall_of_three_in_ten_does_not_reach_the_level_written_0_3():
    # The devkit's fourth level is 0.30000000000000004 in floating point; 0, 0.1 and 0.2 are reached.
    assert eleven_point_ap(np.ones(3, dtype=bool), 10) == pytest.approx(3 / 11)


def test_iou_of_boxes_worked_out_by_hand():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 20, 20]], dtype=float)
    expected = [[1, 25 / 175, 0], [25 / 175, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(pairwise_iou(boxes, boxes), expected)


def test_best_overlap_names_the_row_of_the_same_image():
    overlap, match = best_overlap(
        np.array([CAR, CAR, CAR], dtype=float), np.array([2, 0, 7]), np.array([CAR, FAR_CAR, CAR]), np.array([0, 2, 2])
    )
    assert overlap.tolist() == [1, 1, 0]
    assert match.tolist() == [2, 0, -1]


@pytest.mark.parametrize("seed", range(3))
def test_equals_detectron2s_evaluation_of_devkit_files(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "bool", bool, raising=False)  # voc_eval uses a name that numpy 1.24 to 1.26 lack
    rng = np.random.default_rng(seed)
    # Pixel indices from 1 with both ends included, as in VOC's files.
    devkit = rng.integers(1, 60, (40, 2)).repeat(2, axis=0).reshape(40, 4)[:, [0, 2, 1, 3]]
    devkit[:, 2:] += rng.integers(10, 60, (40, 2))
    image, difficult = np.sort(rng.integers(0, 6, 40)), rng.random(40) < 0.2
    moved = devkit.repeat(3, axis=0) + rng.integers(-9, 10, (120, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    scores = rng.permutation(120) / 1000
    _write_devkit(tmp_path, devkit, image, difficult)
    _write_detections(tmp_path, moved, image.repeat(3), scores)
    templates = [str(tmp_path / name) for name in ("{}.txt", "{}.xml", "list")]
    expected = voc_eval(*templates, "car", ovthresh=0.5, use_07_metric=True)[2]

    shift = np.array([1, 1, 0, 0])
    split = truth(devkit - shift, ignored=difficult.tolist(), image=image.tolist())
    ap = voc_average_precision(split, detections(moved - shift, scores, image=image.repeat(3).tolist()))
    assert 0.05 < expected < 0.95
    assert ap == pytest.approx([100 * expected], abs=1e-9)


def _write_devkit(folder, boxes, image, difficult):
    (folder / "list").write_text("\n".join(map(str, range(6))))
    for i in range(6):
        objects = ""
        for box, flag in zip(boxes[image == i], difficult[image == i]):
            sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
            objects += (
                f"<object><name>car</name><pose>-</pose><truncated>0</truncated><difficult>{int(flag)}</difficult>"
                f"<bndbox>{sides}</bndbox></object>"
            )
        (folder / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")


def _write_detections(folder, boxes, image, scores):
    lines = [f"{i} {s:.3f} " + " ".join(map(str, box)) for i, s, box in zip(image, scores, boxes)]
    (folder / "car.txt").write_text("\n".join(lines))
