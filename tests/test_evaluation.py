"""The evaluators of a split: COCO's numbers equal pycocotools', detections files, and what happens at the edges."""

import json
import logging
import math
import stat

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import soma_det  # noqa: F401
from soma_det.evaluation import build_evaluator, coco_evaluation
from soma_det.evaluation.coco_evaluation import CocoEvaluator
from soma_det.evaluation.detections import Detections, load_detections, save_detections
from soma_det.evaluation.voc_evaluation import VocEvaluator, voc_average_precision
from soma_det.utils.files import atomic_path

CLASSES = ["bus", "bike", "car"]


@pytest.fixture
def register():
    """Registers records under a name for the length of a test."""
    names = []

    def add(name, records, classes=CLASSES, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=classes, **metadata)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def logs(caplog, monkeypatch):
    """What the project logs; Detectron2's setup_logger, if another test has called it, keeps it from caplog."""
    monkeypatch.setattr(logging.getLogger("soma_det"), "propagate", True)
    return caplog


def random_boxes(rng, n):
    corner = rng.uniform(0, 300, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 150, (n, 2))], axis=1).astype(np.float32).astype(float)


def random_records(rng, images=12, crowd=0.1):
    records = []
    for i in range(images):
        annotations = [
            {
                "bbox": box.tolist(),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": int(rng.integers(3)),
                "iscrowd": int(rng.random() < crowd),
            }
            for box in random_boxes(rng, rng.integers(0, 12))
        ]
        records.append({"image_id": f"frame_{i:03d}", "file_name": f"{i}.jpg", "annotations": annotations})
    return records


def instances(boxes, scores, classes):
    result = Instances((400, 500))
    result.pred_boxes = Boxes(torch.tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(np.asarray(scores), dtype=torch.float32)
    result.pred_classes = torch.tensor(np.asarray(classes), dtype=torch.int64)
    return result


def noisy_outputs(rng, records):
    """Per record: its boxes shifted a little, some with a wrong class, and as many random ones."""
    outputs = []
    for record in records:
        true = np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4)
        labels = np.array([a["category_id"] for a in record["annotations"]], dtype=int)
        labels = np.where(rng.random(len(labels)) < 0.2, rng.integers(0, 3, len(labels)), labels)
        boxes = np.concatenate([true + rng.normal(0, 3, true.shape), random_boxes(rng, 10)])
        labels = np.concatenate([labels, rng.integers(0, 3, 10)])
        outputs.append({"instances": instances(boxes, rng.random(len(boxes)), labels)})
    return outputs


def pycocotools_scores(records, detections_file):
    """AP, AP50, AP75, APs, APm, APl, 0 to 100, as pycocotools computes them from the saved detections."""
    number = {record["image_id"]: i for i, record in enumerate(records, start=1)}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in number.values()],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    }
    for record in records:
        for annotation in record["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": number[record["image_id"]],
                    "category_id": annotation["category_id"],
                    "iscrowd": annotation.get("iscrowd", 0),
                    "bbox": box,
                    "area": box[2] * box[3],
                }
            )
    truth.createIndex()
    saved = json.loads(detections_file.read_text())
    found = truth.loadRes([{**entry, "image_id": number[entry["image_id"]]} for entry in saved])
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * evaluation.stats[:6]


@pytest.mark.parametrize("seed", range(3))
def test_coco_scores_equal_pycocotools_on_the_saved_detections(seed, register, tmp_path):
    rng = np.random.default_rng(seed)
    records = random_records(rng)
    name = register("weather_split", records)
    evaluator = build_evaluator(name, tmp_path)
    evaluator.process(records, noisy_outputs(rng, records))
    bbox = evaluator.evaluate()["bbox"]
    expected = pycocotools_scores(records, tmp_path / name / "coco_instances_results.json")
    assert 5 < expected[0] < 95
    np.testing.assert_allclose([bbox[k] for k in ("AP", "AP50", "AP75", "APs", "APm", "APl")], expected, atol=1e-9)
    assert bbox["AP"] == pytest.approx(np.mean([bbox[f"AP-{c}"] for c in CLASSES]))


def test_blocks_of_images_change_no_score(register, monkeypatch):
    records = random_records(np.random.default_rng(3), images=12)
    outputs = noisy_outputs(np.random.default_rng(4), records)
    scores = []
    for block in (500, 5, 1):
        monkeypatch.setattr(coco_evaluation, "BLOCK", block)
        evaluator = CocoEvaluator(register(f"blocks_of_{block}", records))
        evaluator.process(records, outputs)
        scores.append(evaluator.evaluate()["bbox"])
    assert str(scores[0]) == str(scores[1]) == str(scores[2]) and scores[0]["AP"] > 5


def test_box_mode_of_the_data_set_does_not_matter(register):
    rng = np.random.default_rng(0)
    corners = random_records(rng)
    sizes = [
        {
            **record,
            "annotations": [
                {
                    **a,
                    "bbox": BoxMode.convert(a["bbox"], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS),
                    "bbox_mode": BoxMode.XYWH_ABS,
                }
                for a in record["annotations"]
            ],
        }
        for record in corners
    ]
    outputs = noisy_outputs(rng, corners)
    results = []
    for name, records in (("corners", corners), ("sizes", sizes)):
        evaluator = build_evaluator(register(name, records))
        evaluator.process(records, outputs)
        results.append(flatten_results_dict(evaluator.evaluate()))
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_perfect_detections_score_100_and_boxes_are_counted(register):
    records = random_records(np.random.default_rng(1), crowd=0)
    evaluator = build_evaluator(register("weather_split", records))
    for record in records:
        boxes = [a["bbox"] for a in record["annotations"]]
        labels = [a["category_id"] for a in record["annotations"]]
        evaluator.process([record], [{"instances": instances(boxes, [0.9] * len(boxes), labels)}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["voc"] == pytest.approx({"AP50": 100, "AP50-bus": 100, "AP50-bike": 100, "AP50-car": 100})
    labels = [a["category_id"] for record in records for a in record["annotations"]]
    assert results["boxes"] == {name: labels.count(i) for i, name in enumerate(CLASSES)}
    assert results["images"] == {"count": 12}


def test_no_detections_score_zero_with_a_warning(register, tmp_path, logs):
    records = random_records(np.random.default_rng(2), crowd=0)
    name = register("weather_split", records)
    evaluator = build_evaluator(name, tmp_path)
    evaluator.process(records, [{"instances": instances([], [], [])} for _ in records])
    results = evaluator.evaluate()
    assert "no detections at all" in logs.text
    assert results["bbox"]["AP"] == results["bbox"]["APs"] == results["voc"]["AP50"] == 0
    assert json.loads((tmp_path / name / "coco_instances_results.json").read_text()) == []


def test_class_without_ground_truth_is_nan_and_left_out_of_the_means(register):
    box = {"bbox": [10, 10, 60, 60], "bbox_mode": BoxMode.XYXY_ABS}
    records = [
        {"image_id": 7, "annotations": [{**box, "category_id": 2}, {**box, "category_id": 0, "difficult": 1}]},
        {"image_id": 8, "annotations": []},
    ]
    evaluator = build_evaluator(register("weather_split", records))
    found = instances([box["bbox"]] * 3, [0.9, 0.8, 0.7], [2, 1, 0])
    evaluator.process(records, [{"instances": found}, {"instances": instances([], [], [])}])
    results = evaluator.evaluate()
    assert math.isnan(results["voc"]["AP50-bike"]) and math.isnan(results["bbox"]["AP-bike"])
    assert math.isnan(results["voc"]["AP50-bus"]) and math.isnan(results["bbox"]["AP-bus"])
    assert results["voc"]["AP50"] == results["bbox"]["AP"] == pytest.approx(100)
    assert results["boxes"] == {"bus": 0, "bike": 0, "car": 1}
    assert math.isnan(results["bbox"]["APl"])


def test_results_pass_through_detectron2s_printing_and_flattening(register):
    records = random_records(np.random.default_rng(3))
    evaluator = build_evaluator(register("weather_split", records))
    evaluator.process(records, noisy_outputs(np.random.default_rng(3), records))
    results = evaluator.evaluate()
    print_csv_format(results)
    assert all(isinstance(v, (float, int)) for v in flatten_results_dict(results).values())


def test_shards_of_two_ranks_give_the_result_of_one(register, monkeypatch):
    rng = np.random.default_rng(4)
    records = random_records(rng)
    outputs = noisy_outputs(rng, records)
    name = register("weather_split", records)
    whole, first, second = (build_evaluator(name) for _ in range(3))
    whole.process(records, outputs)
    expected = whole.evaluate()

    first.process(records[:5], outputs[:5])
    second.process(records[5:], outputs[5:])
    sent = []
    with monkeypatch.context() as on_rank_1:
        on_rank_1.setattr(comm, "gather", lambda data, dst: sent.append(data) or [])
        on_rank_1.setattr(comm, "is_main_process", lambda: False)
        assert second.evaluate() == {}
    monkeypatch.setattr(comm, "gather", lambda data, dst: [data, *sent])
    assert first.evaluate() == expected


def test_reset_forgets_earlier_detections(register, tmp_path):
    records = random_records(np.random.default_rng(5))
    name = register("weather_split", records)
    evaluator = build_evaluator(name, tmp_path)
    evaluator.process(records, noisy_outputs(np.random.default_rng(5), records))
    evaluator.reset()
    assert evaluator.evaluate()["voc"]["AP50"] == 0


def test_processing_after_scoring_without_a_reset_is_an_error(register):
    name, record = register("weather_split", [{"image_id": 1}]), {"image_id": 1}
    evaluator = build_evaluator(name)
    evaluator.process([record], [{"instances": instances([[1, 2, 4, 8]], [0.5], [0])}])
    evaluator.evaluate()
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        evaluator.process([record], [{"instances": instances([[1, 2, 4, 8]], [0.5], [0])}])


def test_gathered_detections_are_no_copy_and_give_the_scores_of_float64(register):
    rng = np.random.default_rng(3)
    records = random_records(rng)
    evaluator = CocoEvaluator(register("weather_split", records))
    evaluator.process(records, noisy_outputs(rng, records))
    scores = evaluator.evaluate()["bbox"]
    truth, detections = evaluator.gathered
    assert np.shares_memory(detections.xyxy, np.frombuffer(evaluator._rows, dtype=np.float32))
    wide = detections.select(np.arange(len(detections)))
    assert wide.xyxy.dtype == wide.score.dtype == np.float64
    assert 100 * coco_evaluation.evaluate_coco(truth, wide).stats[0] == scores["AP"]
    assert voc_average_precision(truth, wide).tolist() == voc_average_precision(truth, detections).tolist()


def test_images_that_were_not_processed_are_reported(register, logs):
    records = random_records(np.random.default_rng(6))
    evaluator = build_evaluator(register("weather_split", records))
    evaluator.process(records[:3], noisy_outputs(np.random.default_rng(6), records[:3]))
    evaluator.evaluate()
    assert "3 of 12 images" in logs.text


def test_saved_detections_carry_the_data_sets_own_category_ids(register, tmp_path):
    records = [{"image_id": 42, "annotations": []}]
    name = register("coco_split", records, thing_dataset_id_to_contiguous_id={3: 0, 5: 1, 9: 2})
    evaluator = build_evaluator(name, tmp_path)
    evaluator.process(records, [{"instances": instances([[1, 2, 4, 8]], [0.5], [2])}])
    evaluator.evaluate()
    path = tmp_path / name / "coco_instances_results.json"
    assert json.loads(path.read_text()) == [{"image_id": 42, "category_id": 9, "bbox": [1, 2, 3, 6], "score": 0.5}]
    assert load_detections(path, name).category.tolist() == [2]


def test_saved_detections_are_read_back_to_the_last_digit(register, tmp_path):
    rng = np.random.default_rng(7)
    records = random_records(rng)
    name = register("weather_split", records)
    evaluator = build_evaluator(name, tmp_path)
    evaluator.process(records[::-1], noisy_outputs(rng, records[::-1]))
    evaluator.evaluate()
    _, gathered = evaluator._evaluators[0].gathered
    read = load_detections(tmp_path / name / "coco_instances_results.json", name)
    assert len(read) > 100
    for column in ("image", "category", "xyxy", "score"):
        np.testing.assert_array_equal(getattr(read, column), getattr(gathered, column))


def test_file_without_detections_is_read_back_empty(register, tmp_path):
    name = register("weather_split", [{"image_id": 1}])
    nothing = Detections(*(np.zeros(shape) for shape in (0, 0, (0, 4), 0)))
    save_detections(tmp_path / "none.json", nothing, [], name)
    read = load_detections(tmp_path / "none.json", name)
    assert len(read) == 0 and read.xyxy.shape == (0, 4) and read.image.dtype == np.int64


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not in COCO's results format"),
        ("[1]", "not in COCO's results format"),
        ('{"images": []}', "not in COCO's results format"),
        ('[{"image_id": 1}]', "not in COCO's results format"),
        ('[{"image_id": 1, "category_id": 0, "bbox": [0, 0, 1], "score": 1}]', "not in COCO's results format"),
        ('[{"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1], "score": 1}]', "category_id 9, which is not in"),
        ('[{"image_id": "x", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1}]', "image_id 'x', which is not in"),
    ],
)
def test_detections_of_another_format_or_data_set_are_an_error(register, tmp_path, content, message):
    name = register("weather_split", [{"image_id": 1}])
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_detections(tmp_path / "wrong.json", name)


def test_evaluators_are_detectron2s_and_share_one_set_of_detections(register):
    evaluators = build_evaluator(register("weather_split", []))
    coco, voc = evaluators._evaluators
    assert isinstance(evaluators, DatasetEvaluators) and isinstance(coco, COCOEvaluator)
    assert voc._coco is coco


def test_scoring_before_the_detections_are_gathered_is_an_error(register):
    with pytest.raises(RuntimeError, match="call evaluate"):
        VocEvaluator(CocoEvaluator(register("weather_split", []))).evaluate()


def test_data_that_changed_is_scored_as_it_is_now(register, tmp_path):
    # COCOEvaluator itself would score against the json file that it had cached in its output folder.
    records = [{"image_id": 1, "annotations": [{"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 0}]}]
    evaluator = build_evaluator(register("weather_split", records), tmp_path)
    for box, expected in (([0, 0, 9, 9], 100), ([50, 50, 99, 99], 0)):
        records[0]["annotations"][0]["bbox"] = box
        evaluator.reset()
        evaluator.process(records, [{"instances": instances([[0, 0, 9, 9]], [0.9], [0])}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(expected)


def test_only_class_of_a_split_has_its_own_score(register):
    records = [{"image_id": 1, "annotations": [{"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 0}]}]
    evaluator = build_evaluator(register("weather_split", records, classes=["car"]))
    evaluator.process(records, [{"instances": instances([[0, 0, 9, 9]], [0.9], [0])}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP-car"] == results["bbox"]["AP"] == pytest.approx(100)
    assert results["voc"] == {"AP50": 100, "AP50-car": 100}


@pytest.mark.parametrize("seed", range(3))
def test_ties_of_scores_go_by_the_order_of_the_detections_as_in_pycocotools(seed, register, tmp_path):
    rng = np.random.default_rng(seed)
    records = random_records(rng)
    outputs = noisy_outputs(rng, records)
    for output in outputs:
        output["instances"].scores = (output["instances"].scores * 3).round() / 3
    evaluator = build_evaluator(register("weather_split", records), tmp_path)
    evaluator.process(records, outputs)
    bbox = evaluator.evaluate()["bbox"]
    expected = pycocotools_scores(records, tmp_path / "weather_split" / "coco_instances_results.json")
    np.testing.assert_allclose([bbox[k] for k in ("AP", "AP50", "AP75", "APs", "APm", "APl")], expected, atol=1e-9)


def test_predicted_class_beyond_the_splits_classes_is_an_error(register):
    evaluator = build_evaluator(register("weather_split", []))
    with pytest.raises(ValueError, match="predicts class 3, but weather_split has 3 classes"):
        evaluator.process([{"image_id": 0}], [{"instances": instances([[0, 0, 1, 1]], [0.5], [3])}])


def test_detections_on_an_unknown_image_are_an_error(register):
    evaluator = build_evaluator(register("weather_split", [{"image_id": 1, "annotations": []}]))
    evaluator.process([{"image_id": "other"}], [{"instances": instances([[0, 0, 1, 1]], [0.5], [0])}])
    with pytest.raises(ValueError, match="'other', which is not in weather_split"):
        evaluator.evaluate()


def test_two_images_with_one_id_are_an_error(register):
    evaluator = build_evaluator(register("weather_split", [{"image_id": 1}, {"image_id": 1}]))
    with pytest.raises(ValueError, match="image_id 1 is used by more than one image"):
        evaluator.evaluate()


def test_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_file_is_readable_by_others_as_usual(tmp_path):
    with atomic_path(tmp_path / "folder" / "new.txt") as temporary:
        temporary.write_text("new")
    usual = tmp_path / "usual.txt"
    usual.touch()
    assert stat.S_IMODE((tmp_path / "folder" / "new.txt").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
