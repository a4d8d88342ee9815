"""Images are ranked by margins as the method says, labels are never looked at, and interruptions cost nothing."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import train, write_base
from training import tiny_cfg, write_data

from soma_det.engine import Trainer, load_model
from soma_det.uda.scoring import BoxScorer, check_faster_rcnn
from soma_det.uda.selection import (
    CHANGE,
    CLASS_WEIGHT,
    ImageScores,
    box_margins,
    class_weights,
    pick_images,
    rank_images,
    unit_directions,
)

TOOL = Path(__file__).parents[1] / "tools" / "select_images.py"
spec = importlib.util.spec_from_file_location("select_images", TOOL)
select_images = importlib.util.module_from_spec(spec)
spec.loader.exec_module(select_images)

LABELS = ("bus", "car")


def image(margins=(), classes=None, objectness=0.5, boxes=1):
    margins = np.array(margins, dtype=float)
    return ImageScores(
        margins, np.zeros(len(margins), int) if classes is None else np.array(classes), objectness, boxes
    )


def test_a_margin_is_the_largest_minus_the_second_probability_with_background_among_them():
    margins, classes, index = box_margins(np.array([[0.2, 0.3, 0.5], [0.9, 0.1, 0.0]]))
    np.testing.assert_allclose(margins, [0.2, 0.8])
    assert classes.tolist() == [1, 0] and index.tolist() == [0, 1]


def test_a_box_without_a_class_above_a_tenth_does_not_count():
    margins, _, index = box_margins(np.array([[0.1, 0.05, 0.85], [0.11, 0.0, 0.89]]))
    assert index.tolist() == [1] and len(margins) == 1


def test_a_change_between_rounds_moves_the_probabilities_by_a_share_of_it():
    now, before = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.7, 0.2]])
    assert box_margins(now, before)[0] == pytest.approx([0.2 + CHANGE * 0.8])
    assert box_margins(now, now)[0] == pytest.approx(box_margins(now)[0])


def test_no_box_gives_no_margin():
    assert [len(part) for part in box_margins(np.zeros((0, 3)))] == [0, 0, 0]


def test_the_most_frequent_class_has_weight_1_and_only_the_surest_boxes_are_counted():
    assert class_weights([image([0.9, 0.8, 0.1], [1, 1, 0])], 2).tolist() == [0.5, 1]
    many = image(np.r_[np.full(500, 0.9), np.full(100, 0.1)], np.r_[np.ones(500, int), np.zeros(100, int)])
    assert class_weights([many], 2).tolist() == [0, 1]
    assert class_weights([image()], 2).tolist() == [0, 0]


def test_the_score_is_the_mean_of_the_ten_smallest_margins_and_a_tenth_of_the_class_weight():
    margins = np.r_[np.linspace(0.01, 0.1, 10), [0.9] * 30]
    (rank,) = rank_images([image(margins)], LABELS)
    assert rank.score == pytest.approx(0.055 + CLASS_WEIGHT)


def test_unsure_images_come_first_then_rare_classes_then_images_without_boxes_by_objectness():
    images = [
        image(objectness=0.2),
        image([0.9], [1]),
        image([0.1], [1]),
        image(objectness=0.8),
        image([0.5, 0.5], [1, 1]),
        image([0.5], [0]),
    ]
    assert [rank.index for rank in rank_images(images, LABELS)] == [2, 5, 4, 1, 3, 0]


def test_the_reason_names_the_classes_and_the_margin():
    assert rank_images([image([0.25], [1])], LABELS)[0].reason == "mean margin 0.25 of 1 in 1 boxes: car"
    assert "objectness 0.50" in rank_images([image()], LABELS)[0].reason


def pick(images, **options):
    return pick_images(rank_images(images, LABELS), [of.boxes for of in images], **options)


def test_a_budget_in_boxes_is_spent_by_the_detections_and_an_empty_image_costs_one():
    images = [image([0.1], boxes=4), image([0.2], boxes=0), image([0.3], boxes=3), image([0.4], boxes=9)]
    picks = pick(images, most_boxes=6)
    assert [rank.index for rank in picks.ranks] == [0, 1, 2] and picks.boxes == 8


def test_a_budget_in_images_is_kept():
    assert len(pick([image([0.1])] * 5, most_images=2).ranks) == 2


def test_without_a_budget_there_is_an_error():
    with pytest.raises(ValueError, match="budget"):
        pick([image([0.1])])


def test_of_near_duplicates_the_first_in_the_ranking_stays():
    features = np.random.default_rng(0).normal(size=(6, 8))
    features[3] = features[1] + 1e-3
    images = [image([margin]) for margin in (0.5, 0.4, 0.3, 0.2, 0.1, 0.6)]
    picks = pick(images, most_images=6, features=features, similarity=0.95)
    assert picks.duplicates == {1: 3} and len(picks.ranks) == 5


def test_labelled_images_and_their_near_duplicates_are_not_picked():
    features = np.random.default_rng(0).normal(size=(4, 8))
    features[2] = features[0]
    picks = pick([image([0.1])] * 4, most_images=4, features=features, similarity=0.95, labelled=[0])
    assert [rank.index for rank in picks.ranks] == [1, 3] and picks.duplicates == {2: 0}


def test_what_all_images_share_makes_no_two_of_them_alike():
    features = np.random.default_rng(0).normal(size=(50, 64))
    np.testing.assert_allclose(unit_directions(features + 1000), unit_directions(features), atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of data, base weights, and a run's folder; its scores lie close together, as of an untrained detector."""
    folder = tmp_path_factory.mktemp("selection")
    data, base = write_data(folder / "data"), write_base(folder / "vit.safetensors", 1)
    weights = Path(train(data, folder / "run", base))
    cfg = tiny_cfg(data, folder / "run", MODEL__VIT__WEIGHTS=base)
    weights.with_name("config.yaml").write_text(cfg.dump())
    return data, base, weights.parent


def call(run, output, *words):
    pool = () if "--images" in words else ("--split", "tiny_night_sunny_train")
    args = select_images.parse_args([str(run), *pool, "--budget-images", "3", "--output", str(output), *words])
    select_images.main(args)
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_a_split_gives_a_list_a_table_with_reasons_a_json_and_a_sheet(run, tmp_path):
    files = call(run[2], tmp_path)
    names = files["selected.txt"].decode().split()
    assert len(names) == 3 and all(name.startswith("night_sunny_train") for name in names)
    selected = json.loads(files["selection.json"])["selected"]
    assert [row["name"] for row in selected] == names and all(row["reason"] for row in selected)
    assert files["selection.tsv"].decode().count("\n") == 4 and files["selection.jpg"]


def test_poisoned_annotations_change_nothing(run, tmp_path):
    before = call(run[2], tmp_path / "before")
    annotations = run[0] / "night_sunny" / "VOC2007" / "Annotations"
    kept = {path: path.read_bytes() for path in annotations.iterdir()}
    try:
        for path in kept:
            path.write_text("<not xml")
        assert call(run[2], tmp_path / "after") == before
        for path in kept:
            path.unlink()
        assert call(run[2], tmp_path / "without") == before
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_folder_of_images_gives_paths_and_the_same_choice(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    source = run[0] / "night_sunny" / "VOC2007" / "JPEGImages"
    for path in source.glob("night_sunny_train*.jpg"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    paths = call(run[2], tmp_path / "a", "--images", str(folder))["selected.txt"].decode().split()
    names = call(run[2], tmp_path / "b")["selected.txt"].decode().split()
    assert [Path(path).stem for path in paths] == names


def test_labelled_images_are_left_out_of_the_next_round(run, tmp_path):
    first = call(run[2], tmp_path / "first")["selected.txt"].decode().split()
    list_ = str(tmp_path / "first" / "selected.txt")
    second = call(run[2], tmp_path / "second", "--labelled", list_, "--similarity", "1")["selected.txt"].decode()
    assert not set(first) & set(second.split())


def test_an_interrupted_call_goes_on_and_ends_alike(run, tmp_path, monkeypatch):
    whole = call(run[2], tmp_path / "whole")
    lines = whole["scores.jsonl"].decode().split("\n")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "scores.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert call(run[2], tmp_path / "cut") == whole
    monkeypatch.setattr(select_images, "BoxScorer", lambda cfg: pytest.fail("scored again"))
    assert call(run[2], tmp_path / "cut") == whole


def test_a_detector_scores_its_own_boxes_as_it_did(run):
    scorer = BoxScorer(select_images.run_config(str(run[2]), []))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found = scorer.detect(pixels)
    np.testing.assert_allclose(scorer.score(pixels, found.boxes), found.probabilities, atol=1e-4)
    assert len(found.boxes) and 0 < found.objectness < 1


def test_the_same_model_before_changes_no_margin(run, tmp_path):
    alone, same = call(run[2], tmp_path / "a"), call(run[2], tmp_path / "b", "--previous", str(run[2]))
    assert alone["selected.txt"] == same["selected.txt"]


def test_other_heads_are_refused_with_a_remedy(run, tmp_path):
    cascade = {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads", "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True}
    cfg = tiny_cfg(run[0], tmp_path, MODEL__VIT__WEIGHTS=run[1], **cascade)
    for model in (Trainer.build_model(cfg), torch.nn.Identity()):
        with pytest.raises(ValueError, match="StandardROIHeads"):
            check_faster_rcnn(model)


def test_a_pretrained_vit_that_is_gone_is_named_with_a_way_without_it(run, tmp_path):
    gone = ["--opts", "MODEL.VIT.WEIGHTS", "gone.safetensors"]
    with pytest.raises(FileNotFoundError, match="--similarity 1"):
        call(run[2], tmp_path / "gone", *gone)
    assert call(run[2], tmp_path / "kept", "--similarity", "1", *gone)["selected.txt"]


def test_a_run_with_other_classes_before_is_an_error(run, tmp_path, monkeypatch):
    names = iter([("bus",), ("car",)])
    monkeypatch.setattr(select_images, "read_classes", lambda *args: next(names))
    with pytest.raises(ValueError, match="other classes"):
        call(run[2], tmp_path, "--previous", str(run[2]))


def test_an_unknown_split_is_named_with_those_there_are(run, tmp_path):
    args = [str(run[2]), "--split", "tiny_fog_train", "--budget-images", "1", "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="tiny_night_sunny_train"):
        select_images.main(select_images.parse_args(args))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--split", "a"], "--budget-boxes"),
        (["--split", "a", "--budget-images", "0"], "at least 1"),
        (["--budget-images", "2"], "--images"),
    ],
)
def test_a_call_without_images_or_budget_ends_with_a_message(words, message, capsys):
    with pytest.raises(SystemExit):
        select_images.parse_args(["run", *words])
    assert message in capsys.readouterr().err


def test_the_scorer_is_the_evaluated_detector(run):
    """Its boxes are the proposals of the detections that the model itself gives."""
    cfg = select_images.run_config(str(run[2]), [])
    scorer, model = BoxScorer(cfg), load_model(cfg)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        entry = {"image": torch.as_tensor(pixels.transpose(2, 0, 1).copy()), "height": 48, "width": 64}
        expected = model([entry])[0]["instances"].scores.max()
    assert scorer.detect(pixels).probabilities[:, :-1].max() == pytest.approx(float(expected), abs=1e-4)
