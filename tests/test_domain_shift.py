"""Distances between domains have their closed forms, and tools/domain_shift.py reports them for registered splits."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import write_base
from training import CONFIG, options, write_data

from soma_det.config import setup_cfg
from soma_det.uda.features import FrozenFeatures, average_in_boxes
from soma_det.uda.shift import (
    Sample,
    a_distance,
    class_variation,
    entropy,
    equal_counts,
    fit_temperature,
    js_divergence,
    measure_shift,
    softmax,
)

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("domain_shift", ROOT / "tools" / "domain_shift.py")
domain_shift = importlib.util.module_from_spec(spec)
spec.loader.exec_module(domain_shift)

LABELS = ("bus", "car")


def sample(seed=0, shift=0.0, rows=200, classes=2, images=50, width=6):
    """Gaussian features; the first one is moved by ``shift``."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width))
    features[:, 0] += shift
    return Sample(features, np.arange(rows) % classes, np.arange(rows) % images, LABELS)


def measure(*args, **options):
    return measure_shift(*args, **({"resamples": 8, "peaks": (0.3,)} | options))


def test_a_uniform_distribution_has_the_logarithm_of_its_length_as_entropy_and_a_sure_one_none():
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert entropy(np.eye(4)[0]) == 0


def test_divergence_of_equal_distributions_is_0_and_of_disjoint_ones_1():
    p = softmax(np.random.default_rng(0).normal(size=(5, 7)), 1.0)
    np.testing.assert_allclose(js_divergence(p, p), 0, atol=1e-12)
    one_hot = np.eye(6)
    np.testing.assert_allclose(js_divergence(one_hot[:3], one_hot[3:]), 1)


def test_divergence_is_symmetric():
    p, q = softmax(np.random.default_rng(0).normal(size=(2, 7)), 1.0)
    assert js_divergence(p, q) == pytest.approx(js_divergence(q, p))


def test_variation_is_0_for_equal_boxes_and_the_logarithm_of_their_number_for_disjoint_ones():
    assert class_variation(np.tile([[0.2, 0.3, 0.5]], (4, 1))) == pytest.approx(0)
    assert class_variation(np.eye(8)) == pytest.approx(3)


def test_variation_lies_between_0_and_the_logarithms_of_boxes_and_of_features():
    rng = np.random.default_rng(0)
    for rows, width in ((3, 50), (50, 3)):
        p = softmax(rng.normal(size=(rows, width)), 0.1)
        assert 0 <= class_variation(p) <= np.log2(min(rows, width)) + 1e-9


@pytest.mark.parametrize("peak", [0.2, 0.9])
def test_at_the_fitted_temperature_the_median_of_the_largest_probability_is_the_peak(peak):
    features = np.random.default_rng(0).normal(size=(101, 20))
    tau = fit_temperature(features, peak)
    assert np.median(softmax(features, tau).max(axis=1)) == pytest.approx(peak, rel=1e-3)


def test_a_peak_below_that_of_a_uniform_distribution_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"above 0\.05"):
        fit_temperature(np.random.default_rng(0).normal(size=(50, 20)), 0.01)


def test_the_a_distance_is_2_for_separable_domains_and_about_0_for_the_same_distribution():
    rng = np.random.default_rng(0)
    assert a_distance(sample(0), sample(1, shift=50), rng) == 2
    same = [a_distance(sample(2 * i), sample(2 * i + 1), rng) for i in range(20)]
    assert abs(np.mean(same)) < 0.1


def test_one_image_has_no_a_distance():
    assert np.isnan(a_distance(sample(0, images=1), sample(1), np.random.default_rng(0)))


def test_rows_of_one_image_do_not_teach_the_classifier_about_each_other():
    """Each image has a direction of its own, which a fold that split images would remember."""

    def of_images(seed):
        rng = np.random.default_rng(seed)
        images = np.repeat(np.arange(20), 10)
        return Sample(3 * rng.normal(size=(20, 300))[images], np.zeros(200, int), images, ("image",))

    found = [a_distance(of_images(i), of_images(100 + i), np.random.default_rng(i)) for i in range(6)]
    assert abs(np.mean(found)) < 0.5


def test_the_same_domain_is_as_far_as_the_two_halves_and_a_moved_one_is_farther():
    table = measure({"clear": sample(0), "other": sample(1), "fog": sample(2, shift=6.0)}, "clear")
    null, other, fog = (s.divergence[0.3].value for s in (table.null, *table.domains.values()))
    assert null < 0.05 and other == pytest.approx(null, abs=0.03)
    assert fog > 5 * null
    assert table.domains["fog"].a_distance.value > 1.8 > 0.5 > abs(table.domains["other"].a_distance.value)


def test_the_order_of_the_domains_and_of_their_rows_images_changes_nothing():
    domains = {"clear": sample(0), "fog": sample(1, shift=1.0), "night": sample(2, shift=2.0)}
    first = measure(domains, "clear")
    assert measure(dict(reversed(domains.items())), "clear").domains["fog"] == first.domains["fog"]
    assert measure({name: domains[name] for name in ("clear", "night")}, "clear").null == first.null


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    domains = {"clear": sample(0), "fog": sample(1, shift=1.0)}
    assert measure(domains, "clear", seed=3) == measure(domains, "clear", seed=3)
    assert measure(domains, "clear", seed=4).domains["fog"] != measure(domains, "clear", seed=3).domains["fog"]


def test_a_class_with_too_few_boxes_in_one_domain_is_left_out_and_counted():
    few = sample(1)
    few = few.rows(np.flatnonzero((few.classes == 1) | (np.arange(200) < 40)))
    table = measure({"clear": sample(0), "fog": few}, "clear", least=30)
    assert table.left_out == {"bus": {"clear": 100, "fog": 20}}
    assert table.counts == {"car": 50}


def test_every_side_has_the_fewest_boxes_of_any_domain_and_at_most_half_of_the_source():
    counts, _ = equal_counts({"clear": sample(rows=200), "fog": sample(rows=120)}, "clear", 30)
    assert counts.tolist() == [50, 50]
    counts, _ = equal_counts({"clear": sample(rows=200), "fog": sample(rows=80)}, "clear", 30)
    assert counts.tolist() == [40, 40]


def test_without_any_class_of_enough_boxes_the_error_says_so():
    with pytest.raises(ValueError, match="larger splits"):
        measure({"clear": sample(rows=20)}, "clear", least=30)


def test_the_scale_of_a_feature_changes_nothing():
    """Features are standardized by the source."""
    domains = {"clear": sample(0), "fog": sample(1, shift=1.0)}
    scaled = {
        n: Sample(s.features * [1, 10, 100, 1, 1, 1] + 5, s.classes, s.images, s.labels) for n, s in domains.items()
    }
    before, after = (measure(d, "clear").domains["fog"].divergence[0.3].value for d in (domains, scaled))
    assert before == pytest.approx(after)


def test_tokens_are_averaged_by_their_area_in_the_box():
    tokens = torch.arange(12.0).view(1, 3, 4)
    boxes = torch.tensor(
        [[0, 0, 4, 3], [1, 1, 2, 2], [0.5, 0, 2, 1], [3.2, 2.2, 3.2, 2.2], [-5, 0, 1, 1], [9, 9, 9, 9]]
    )
    expected = [[5.5], [5.0], [(0.5 * 0 + 1) / 1.5], [11.0], [0.0], [11.0]]
    torch.testing.assert_close(average_in_boxes(tokens, boxes), torch.tensor(expected))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift")
    return write_data(folder / "data"), write_base(folder / "vit.safetensors", 1)


def words(case, **changes):
    data, base = case
    return [str(word) for word in options(data, "unused", MODEL__VIT__WEIGHTS=base, **changes)]


def call(case, output, *flags, **changes):
    argv = ["--config-file", CONFIG, "--output", str(output), "--least", "2", "--resamples", "4", *flags]
    text = domain_shift.main(domain_shift.parse_args([*argv, "--opts", *words(case, **changes)]))
    return text, json.loads((output / "shift.json").read_text())


def test_the_first_row_of_features_is_that_of_the_whole_image(case):
    extract = FrozenFeatures(setup_cfg(CONFIG, words(case)))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found = extract(image, np.array([[0, 0, 64, 48], [3, 3, 20, 20]]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert found.shape[0] == 3 and not np.allclose(found[0], found[2])


def test_features_of_random_weights_or_of_another_backbone_are_refused(case):
    with pytest.raises(ValueError, match=r"VIT\.WEIGHTS"):
        FrozenFeatures(setup_cfg(CONFIG, words((case[0], ""))))
    other = setup_cfg(CONFIG, words(case)).clone()
    other.defrost()
    other.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with pytest.raises(ValueError, match="build_soma_vit_backbone"):
        FrozenFeatures(other)


def test_the_tool_reports_every_split_and_the_halves_and_reads_known_features_again(case, tmp_path, monkeypatch):
    text, content = call(case, tmp_path)
    assert "daytime clear, two halves" in text and "night sunny" in text
    assert set(content["tables"]) == {"In boxes, mean over classes", "Whole images"}
    assert {"shift.md", "shift.png", "shift.json", "features"} <= {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(domain_shift, "FrozenFeatures", lambda cfg: pytest.fail("computed again"))
    assert call(case, tmp_path)[1] == content


def test_changed_boxes_are_computed_again(case):
    records = [{"file_name": "a.jpg", "annotations": [{"bbox": [0, 0, 5, 5], "bbox_mode": 0, "category_id": 1}]}]
    cfg = setup_cfg(CONFIG, words(case))
    before = domain_shift._key(cfg, records)
    records[0]["annotations"][0]["bbox"] = [0, 0, 5, 6]
    assert domain_shift._key(cfg, records) != before


def test_losses_are_points_against_the_source(case, tmp_path):
    results = {
        "metadata": {},
        "source": "tiny_daytime_clear_test",
        "results": {
            f"tiny_{name}_test": {"voc": {"AP50": score}, "bbox": {"AP": score}}
            for name, score in (("daytime_clear", 40.0), ("night_sunny", 31.5))
        },
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    text, content = call(case, tmp_path, "--results", str(tmp_path / "results.json"))
    assert content["ap50_losses"] == {"tiny_night_sunny_test": 8.5} and "AP50 lost" in text


@pytest.mark.parametrize(
    "flags, message", [(["--source", "nowhere"], "--source"), (["--splits", "nowhere"], "nowhere")]
)
def test_a_split_that_is_not_there_is_named(case, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        call(case, tmp_path, *flags)
