"""A run's model card: what it was trained on, how it scores, the license of its base, and how to load it."""

import pytest
import yaml
from training import tiny_cfg, write_data

from soma_det.engine import Trainer
from soma_det.evaluation.model_card import base_license, write_model_card
from soma_det.evaluation.summary import summarize

SCORES = {"bbox": {"AP": 20.0, "AP50": 40.0, "AP75": 1.0, "APs": 1.0, "APm": 1.0, "APl": 1.0}, "images": {"count": 3}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def summary(source, night):
    results = {
        name: {**SCORES, "voc": {"AP50": ap, "AP50-car": ap}, "boxes": {"car": 9}}
        for name, ap in (("tiny_daytime_clear_test", source), ("tiny_night_sunny_test", night))
    }
    return summarize(results, "tiny_daytime_clear_test", {"tiny_night_sunny_test": "night sunny"})


def test_the_card_has_the_scores_the_recipe_and_a_header_that_the_hub_reads(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path / "my_run")
    text = write_model_card(cfg, summary(41.2, 23.4), {"torch": "1"}).read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == "timm/test_vit"
    assert yaml.safe_load(header)["pipeline_tag"] == "object-detection"
    words = ("# my_run", "41.2", "23.4", "night sunny", "tiny_daytime_clear_train", "SomaConfig(rank=2", "Detector(")
    assert all(word in body for word in words)


def test_the_license_is_that_which_timm_states_and_other_for_a_file(data, tmp_path):
    known = tiny_cfg(data, tmp_path, MODEL__VIT__NAME="vit_small_patch14_dinov2.lvd142m", MODEL__VIT__WEIGHTS="timm")
    assert base_license(known) == "apache-2.0"
    file = tiny_cfg(data, tmp_path, MODEL__VIT__WEIGHTS="some/vit.safetensors")
    assert base_license(file) == "other"
    assert "whose license is not known" in write_model_card(file, summary(1.0, 1.0), {}).read_text()


def test_an_evaluation_writes_the_card_beside_its_results(data, tmp_path):
    cfg = tiny_cfg(data, tmp_path)
    Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert {"model_card.md", "results.md"} <= {path.name for path in tmp_path.iterdir()}
