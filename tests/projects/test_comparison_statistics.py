"""The comparison's statistics against numbers worked out by hand."""

import math

import numpy as np
import pytest
from training import tiny_cfg, write_data

from adapter_comparison.bootstrap import (
    match_class,
    resample_split,
    resampled_average_precision,
    weighted_average_precision,
)
from adapter_comparison.statistics import bootstrap_interval, paired_difference, spread, summarize_splits
from soma_det.evaluation.detections import Detections, GroundTruth, load_ground_truth, save_detections
from soma_det.evaluation.voc_evaluation import voc_average_precision

NIGHT = "tiny_night_sunny_test"
NAN = float("nan")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_spread_is_the_mean_and_the_sample_standard_deviation():
    three = spread({1: 10.0, 2: 14.0, 3: 12.0})
    assert (three.mean, three.sd) == (12, 2)  # sqrt((4 + 4 + 0) / 2)
    one = spread({1: 10.0, 2: NAN})
    assert one.values == {1: 10} and one.mean == 10 and math.isnan(one.sd)
    assert math.isnan(spread({1: NAN}).mean)


def test_unseen_is_the_mean_without_the_source_and_relative_divides_by_it():
    of = summarize_splits({"clear": 60.0, "night": 30.0, "fog": 48.0, "empty": NAN}, "clear")
    assert (of["unseen"], of["relative"], of["clear"]) == (39, 65, 60)
    series = summarize_splits({"clear": np.array([60.0, 0.0]), "fog": np.array([48.0, 3.0])}, "clear")
    assert series["unseen"].tolist() == [48, 3]
    assert series["relative"][0] == 80 and math.isnan(series["relative"][1])


def test_choosing_takes_the_source_and_one_weather_and_the_held_out_mean_neither():
    scores = {"clear": 60.0, "night": 30.0, "fog": 48.0, "rain": 20.0}
    of = summarize_splits(scores, "clear", validation="night")
    assert (of["choosing"], of["held_out"]) == (45, 34)
    assert of["unseen"] == pytest.approx(98 / 3)  # with the weather that chose
    assert "choosing" not in summarize_splits(scores, "clear")


def test_differences_are_paired_by_seed_and_use_only_seeds_that_both_have():
    scores, reference = {1: 10.0, 2: 14.0, 3: 12.0, 4: 99.0}, {3: 13.0, 2: 10.0, 1: 9.0, 5: 0.0}

    def constant(values):
        return {seed: np.full(50, value) for seed, value in values.items()}

    difference = paired_difference(scores, reference, constant(scores), constant(reference))
    assert difference.values == {1: 1, 2: 4, 3: -1}
    assert difference.mean == pytest.approx(4 / 3)
    assert difference.sd == pytest.approx(math.sqrt((1 / 9 + 64 / 9 + 49 / 9) / 2))
    assert -1 <= difference.interval[0] < 4 / 3 < difference.interval[1] <= 4
    none = paired_difference({1: 1.0}, {2: 1.0}, {}, {})
    assert none.values == {} and math.isnan(none.mean) and math.isnan(none.interval[0])


def test_the_interval_of_equal_differences_is_a_point():
    assert bootstrap_interval(np.full((3, 200), 2.5)) == (2.5, 2.5)


def test_two_seeds_that_disagree_give_an_interval_from_one_to_the_other():
    # The mean of two draws from {0, 1} is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4: both ends are beyond 2.5 %.
    assert bootstrap_interval(np.array([[0.0], [1.0]]).repeat(1000, axis=1)) == (0, 1)
    # Of six seeds one that differs is drawn k times with probability C(6, k) 5^(6 - k) / 6^6: 0 times 33 %, 4 times or
    # more 0.9 %, 3 times or more 6 %.
    assert bootstrap_interval(np.array([[6.0]] + 5 * [[0.0]]).repeat(20000, axis=1)) == (0, 3)


def test_seeds_that_agree_leave_the_interval_of_the_images():
    assert bootstrap_interval(np.tile(np.arange(1001.0), (2, 1))) == pytest.approx((25, 975))
    with_gaps = np.tile(np.where(np.arange(1001) % 2, NAN, 7.0), (2, 1))
    assert bootstrap_interval(with_gaps) == (7, 7)


def test_a_single_seed_or_no_score_has_no_interval():
    assert all(map(math.isnan, bootstrap_interval(np.arange(1001.0)[None])))
    assert all(map(math.isnan, bootstrap_interval(np.full((2, 10), NAN))))


def test_what_resampling_adds_to_every_score_does_not_move_the_interval():
    images = np.array([-1.0, 0.0, 1.0] * 400)
    scores, resampled = {1: 12.0, 2: 12.0}, {1: 20 + images, 2: 15 + images}  # by 8 and 3 too high
    none = np.zeros(1200)
    difference = paired_difference(scores, {1: 10.0, 2: 10.0}, resampled, {1: 10 + none, 2: 10 + none})
    assert difference.mean == 2 and difference.interval == pytest.approx((1, 3))


def boxes(*rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def test_average_precision_on_drawn_images_by_hand():
    # Image 0: a box that is found with score 0.9. Image 1: a box that is missed, and a false alarm of score 0.95.
    truth = GroundTruth(
        [10, 11], ["car"], np.array([0, 1]), np.array([0, 0]), boxes([0, 0, 9, 9], [0, 0, 9, 9]), np.zeros(2, bool)
    )
    found = Detections(np.array([0, 1]), np.array([0, 0]), boxes([0, 0, 9, 9], [50, 50, 60, 60]), np.array([0.9, 0.95]))
    drawn = np.array([[1, 1], [2, 0], [0, 2], [2, 1], [0, 0]])
    ap = weighted_average_precision(match_class(truth, found, 0), drawn)
    # Once each: precision 1/2 up to recall 1/2, 6 of the 11 points. Two and one: 2/3 up to 2/3, 7 points.
    assert ap[:4] == pytest.approx([100 * 6 / 11 / 2, 100, 0, 100 * 7 / 11 * 2 / 3])
    assert math.isnan(ap[4])


def random_split(seed, images=12, boxes_per_class=20):
    rng = np.random.default_rng(seed)
    n = 3 * boxes_per_class
    corner = rng.uniform(0, 80, (n, 2))
    xyxy = np.concatenate([corner, corner + rng.uniform(5, 20, (n, 2))], axis=1)
    image, category = rng.integers(images, size=n), np.repeat([0, 1, 3], boxes_per_class)
    truth = GroundTruth(list(range(images)), list("abcd"), image, category, xyxy, rng.random(n) < 0.1)
    jitter = np.repeat(xyxy, 3, axis=0) + rng.normal(0, 2, (3 * n, 4))
    found = Detections(np.repeat(image, 3), np.repeat(category, 3), jitter, rng.random(3 * n).round(2))
    return truth, found


@pytest.mark.parametrize("seed", range(4))
def test_every_image_drawn_once_gives_the_average_precision_of_the_evaluation(seed):
    truth, found = random_split(seed)
    once = np.ones((1, len(truth.image_ids)), dtype=np.int64)
    ap = [weighted_average_precision(match_class(truth, found, c), once)[0] for c in range(4)]
    np.testing.assert_allclose(ap, voc_average_precision(truth, found), rtol=1e-12)


def test_a_image_drawn_twice_counts_as_two_images():
    truth, found = random_split(5)
    drawn = np.ones((1, 12), dtype=np.int64)
    drawn[0, 3] = 2
    # The copy of image 3 as an image of its own, number 12, with the same boxes.
    copy, again = truth.image == 3, found.image == 3
    both = GroundTruth(
        list(range(13)),
        truth.classes,
        np.concatenate([truth.image, np.full(copy.sum(), 12)]),
        np.concatenate([truth.category, truth.category[copy]]),
        np.concatenate([truth.xyxy, truth.xyxy[copy]]),
        np.concatenate([truth.ignored, truth.ignored[copy]]),
    )
    found.score[:] = np.random.default_rng(0).permutation(len(found.score))  # no ties but those of the copy
    twice = Detections(
        np.concatenate([found.image, np.full(again.sum(), 12)]),
        np.concatenate([found.category, found.category[again]]),
        np.concatenate([found.xyxy, found.xyxy[again]]),
        np.concatenate([found.score, found.score[again]]),
    )
    expected = voc_average_precision(both, twice)
    for category in (0, 1, 3):
        ap = weighted_average_precision(match_class(truth, found, category), drawn)[0]
        assert ap == pytest.approx(expected[category])


def test_resampling_does_not_depend_on_how_much_is_held_at_a_time(monkeypatch):
    truth, found = random_split(6)
    whole = resampled_average_precision(truth, found, 40, seed=1)
    monkeypatch.setattr("adapter_comparison.bootstrap.CHUNK", 1)
    np.testing.assert_array_equal(resampled_average_precision(truth, found, 40, seed=1), whole)
    assert whole.shape == (40, 4) and np.isnan(whole[:, 2]).all() and whole[:, 0].std() > 0


def test_saved_detections_are_resampled_the_same_way_each_time(data, tmp_path):
    tiny_cfg(data, tmp_path)
    truth, path = load_ground_truth(NIGHT), tmp_path / "detections.json"
    save_detections(path, Detections(truth.image, truth.category, truth.xyxy, truth.xyxy[:, 0]), truth.image_ids, NIGHT)
    first, second = (resample_split(NIGHT, path, resamples=20) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.nanmin(first) == pytest.approx(100)
