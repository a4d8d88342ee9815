"""The benchmark of a trained detector by several runtimes scores them on the same images, as the evaluation does."""

import json

import benchmark
import pytest
import torch
from test_export import train, write_base
from torch import nn
from training import options, tiny_cfg, write_data

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from benchmarks import runtimes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, and the words that make it tiny."""
    folder, data = tmp_path_factory.mktemp("run"), write_data(tmp_path_factory.mktemp("data"))
    base = str(write_base(tmp_path_factory.mktemp("base") / "vit.safetensors", seed=1))
    weights = train(data, folder, base)
    changes = {"MODEL__VIT__WEIGHTS": base, "MODEL__WEIGHTS": weights, "TEST__DETECTIONS_PER_IMAGE": 20}
    (folder / "config.yaml").write_text(tiny_cfg(data, folder, **changes).dump())
    return folder, [str(word) for word in options(data, folder, **changes)]


def test_every_runtime_has_a_row_with_time_and_ap(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)  # which takes half a minute
    output = tmp_path / "infer.json"
    arguments = ["--run", str(run[0]), "--images", "2", "--rounds", "2", "--output", str(output)]
    benchmark.main(["infer", *arguments, "--opts", "SOLVER.AMP.CPU", "off"])
    content = json.loads(output.read_text())
    rows = {(row["runtime"], row["precision"]): row for row in content["rows"]}
    expected = {("eager torch", "fp32"), ("torch.compile", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")}
    assert expected <= set(rows) and all(row["ms"] > 0 for row in rows.values())
    eager, exported = rows["eager torch", "fp32"], rows["onnxruntime", "fp32"]
    assert eager["times eager's speed"] == 1 and eager["VOC AP50"] == pytest.approx(exported["VOC AP50"], abs=0.1)
    assert "AP on 2 images of tiny_daytime_clear_test_first_2" in capsys.readouterr().out


def test_a_predictor_that_finds_all_boxes_has_the_highest_score_and_a_blind_one_none(run):
    split = runtimes.first_images("tiny_daytime_clear_test", 2)
    records = iter(DatasetCatalog.get(split))

    def omniscient(image):
        record = next(records)
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor([entry["bbox"] for entry in record["annotations"]], dtype=torch.float32))
        found.pred_classes = torch.tensor([entry["category_id"] for entry in record["annotations"]])
        found.scores = torch.ones(len(found.pred_classes))
        return found

    def blind(image):
        nothing = torch.zeros(0)
        return Instances(
            image.shape[:2], pred_boxes=Boxes(torch.zeros(0, 4)), scores=nothing, pred_classes=nothing.long()
        )

    assert runtimes.score(omniscient, split) == pytest.approx({"VOC AP50": 100, "AP": 100})
    assert runtimes.score(blind, split) == {"VOC AP50": 0, "AP": 0}


def test_a_part_of_a_split_is_its_first_images(run):
    whole = DatasetCatalog.get("tiny_daytime_clear_test")
    assert runtimes.first_images("tiny_daytime_clear_test", 0) == "tiny_daytime_clear_test"
    assert DatasetCatalog.get(runtimes.first_images("tiny_daytime_clear_test", 2)) == whole[:2] != whole
