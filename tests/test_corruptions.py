"""Corruptions: what the benchmark defines, always the same for an image, and means over what was evaluated alone."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from test_export import train, write_base
from training import CONFIG, options, write_data

from soma_det.evaluation.corruptions import BENCHMARK, SEVERITIES, WEATHER, Corruption, check_corruption, corrupt

TOOL = Path(__file__).parents[1] / "tools" / "evaluate_corruptions.py"
spec = importlib.util.spec_from_file_location("evaluate_corruptions", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def random_image(height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", WEATHER)
def test_simulated_weather_changes_an_image_always_in_the_same_way(name):
    first, second = (corrupt(random_image(), name, 1) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.uint8 and not np.array_equal(first, random_image())


def test_simulated_weather_on_bgr_is_that_on_rgb():
    bgr = np.ascontiguousarray(random_image()[:, :, ::-1])
    night = corrupt(bgr, "simulated_night_sunny", 1, "BGR")[:, :, ::-1]
    np.testing.assert_array_equal(night, corrupt(random_image(), "simulated_night_sunny", 1))


@pytest.mark.parametrize("level, deviation", [(1, 0.08), (2, 0.12), (3, 0.18), (4, 0.26), (5, 0.38)])
def test_gaussian_noise_has_the_published_deviations(level, deviation):
    pytest.importorskip("imagecorruptions")
    gray = np.full((128, 128, 3), 128, np.uint8)
    noise = (corrupt(gray, "gaussian_noise", level).astype(float) - 128) / 255
    # Clipping to 0..255 takes from the tails: the deviation of what a normal one leaves between both.
    clipped = np.clip(np.random.default_rng(0).normal(0.5, deviation, 10**6), 0, 1).std()
    assert noise.std() == pytest.approx(clipped, rel=0.03)


def test_brightness_adds_the_published_value_to_gray():
    pytest.importorskip("imagecorruptions")
    gray = np.full((64, 64, 3), 100, np.uint8)
    for level, added in zip(SEVERITIES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        assert abs(corrupt(gray, "brightness", level).mean() - min(255, 100 + 255 * added)) < 1.5


def test_a_corruption_leaves_numpys_random_numbers_alone():
    pytest.importorskip("imagecorruptions")
    np.random.seed(3)
    corrupt(random_image(), "shot_noise", 2)
    after = np.random.rand()
    np.random.seed(3)
    assert np.random.rand() == after


def test_unknown_corruptions_and_severities_are_named():
    with pytest.raises(ValueError, match="no corruption 'hail'"):
        check_corruption("hail", 1)
    with pytest.raises(ValueError, match="severity of simulated_daytime_foggy is 3"):
        Corruption("simulated_daytime_foggy", 3)


def scores(value, clean=50.0):
    of = {(name, level): {"VOC AP50": value, "COCO AP": value / 2} for name in BENCHMARK for level in SEVERITIES}
    return {("clean", 0): {"VOC AP50": clean, "COCO AP": clean / 2}, **of}


def test_mpc_is_the_mean_of_75_and_rpc_its_share_of_the_clean_score():
    of = scores(20.0)
    of["fog", 5] = {"VOC AP50": 95.0, "COCO AP": 10.0}
    summary = tool.summarize(of, "VOC AP50")
    assert summary == {"clean": 50.0, "mPC": pytest.approx(21.0), "rPC": pytest.approx(42.0)}  # (74 * 20 + 95) / 75


def test_what_was_not_evaluated_is_no_zero():
    of = scores(20.0)
    del of["snow", 2]
    assert tool.summarize(of, "VOC AP50") == {"clean": 50.0, "mPC": None, "rPC": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data, base = write_data(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("base") / "vit.safetensors"
    write_base(base, seed=1)
    return data, str(base), train(data, tmp_path_factory.mktemp("saved"), str(base))


def call(run, folder, *names):
    data, base, weights = run
    words = [str(word) for word in options(data, folder, MODEL__VIT__WEIGHTS=base)]
    arguments = ["--config-file", CONFIG, "--weights", weights, "--output", str(folder), "--corruptions", *names]
    tool.main(tool.parse_args([*arguments, "--opts", *words]))
    return json.loads((folder / "results.json").read_text())


def test_an_evaluation_is_reported_and_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    first = call(run, tmp_path, "simulated_daytime_foggy")
    assert set(first["scores"]) == {"clean/0", "simulated_daytime_foggy/1"}
    assert {"results.md", "clean", "simulated_daytime_foggy"} <= {path.name for path in tmp_path.iterdir()}
    evaluated = []
    monkeypatch.setattr(tool, "evaluate", lambda cfg, model, name, severity, folder: evaluated.append(name))
    call(run, tmp_path, "simulated_daytime_foggy", "simulated_night_rainy")
    assert evaluated == ["simulated_night_rainy"]
