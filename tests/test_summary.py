"""The summary over weathers: its figures, its tables, and the files it writes."""

import json
import math

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

import soma_det  # noqa: F401
from soma_det.evaluation import domain_labels, format_table, load_results, summarize, write_results
from soma_det.evaluation.chart import draw_domain_chart

CLEAR, NIGHT, FOG = (f"diverse_weather_{d}" for d in ("daytime_clear_test", "night_rainy_train", "daytime_foggy_train"))
NAN = float("nan")


def split(voc, coco, bus=NAN, bus_boxes=0):
    return {
        "bbox": {
            "AP": coco,
            "AP50": voc,
            "AP75": coco,
            "APs": NAN,
            "APm": coco,
            "APl": coco,
            "AP-bus": bus,
            "AP-car": coco,
        },
        "voc": {"AP50": voc, "AP50-bus": bus, "AP50-car": voc},
        "boxes": {"bus": bus_boxes, "car": 1200},
        "images": {"count": 40},
    }


LABELS = {CLEAR: "daytime clear", NIGHT: "night rainy", FOG: "daytime foggy"}
RESULTS = {CLEAR: split(60.0, 40.0, 58.0, 12), NIGHT: split(30.0, 16.0), FOG: split(48.0, 30.0, 44.0, 3)}


def row(table, label):
    """The words of the first line that starts with ``label``."""
    return next(line for line in table.splitlines() if line.lstrip("| ").startswith(label))[len(label) :].split()


def test_mean_of_unseen_leaves_the_source_out_and_relative_divides_by_it():
    summary = summarize(RESULTS, CLEAR)
    assert summary.voc_ap50.source == 60
    assert summary.voc_ap50.unseen == {NIGHT: 30, FOG: 48}
    assert summary.voc_ap50.mean_unseen == pytest.approx(39)
    assert summary.voc_ap50.relative == pytest.approx(65)
    assert summary.coco_ap.mean_unseen == pytest.approx(23)
    assert summary.coco_ap.relative == pytest.approx(57.5)
    assert summary.remark() == ""


@pytest.mark.parametrize("source, reason", [("", "No source split is configured"), (CLEAR, "was not tested")])
def test_without_a_tested_source_all_splits_are_unseen_and_the_table_says_why(source, reason):
    summary = summarize({NIGHT: RESULTS[NIGHT], FOG: RESULTS[FOG]}, source)
    assert summary.voc_ap50.source is None and summary.voc_ap50.relative is None
    assert summary.voc_ap50.mean_unseen == pytest.approx(39)
    assert reason in format_table(summary)


def test_source_alone_has_no_mean_of_unseen_and_the_table_says_why():
    summary = summarize({CLEAR: RESULTS[CLEAR]}, CLEAR)
    assert summary.voc_ap50.source == 60
    assert summary.voc_ap50.mean_unseen is None and summary.voc_ap50.relative is None
    assert "Only the source split was tested" in format_table(summary)


def test_source_score_of_zero_gives_no_relative_performance():
    summary = summarize({CLEAR: split(0.0, 0.0), FOG: RESULTS[FOG]}, CLEAR)
    assert summary.voc_ap50.relative is None


def test_unseen_split_without_any_score_is_left_out_of_the_mean():
    assert summarize({**RESULTS, NIGHT: split(NAN, NAN)}, CLEAR).voc_ap50.mean_unseen == 48


def test_results_without_split_names_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="leaves the name out"):
        summarize(RESULTS[CLEAR], CLEAR)
    with pytest.raises(ValueError, match="split name"):
        summarize({}, CLEAR)


def test_tables_hold_scores_roles_and_box_counts():
    table = format_table(summarize(RESULTS, CLEAR, LABELS))
    assert row(table, "daytime clear") == ["source", "40", "1,212", "60.0", "40.0", "60.0", "40.0", "-", "40.0", "40.0"]
    assert row(table, "mean of unseen") == ["39.0", "23.0"]
    assert row(table, "relative performance under shift") == ["65.0", "%", "57.5", "%"]
    per_class = table.split("per class")[1]
    assert row(per_class, "night rainy") == ["-", "(0)", "30.0", "(1,200)", "30.0"]
    assert row(per_class, "daytime foggy") == ["44.0", "(3)", "48.0", "(1,200)", "48.0"]


@pytest.fixture
def describe():
    """Sets the metadata of data sets for the length of a test."""
    names = []

    def set_metadata(name, **metadata):
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield set_metadata
    for name in names:
        MetadataCatalog.remove(name)


def test_labels_are_the_domains_of_the_metadata_whatever_the_names_say(describe):
    names = [
        describe("a_b_c", domain="night_rainy", split="x"),
        describe("d", domain="Dusk"),
        describe("my_photos_test"),
    ]
    assert list(domain_labels(names).values()) == ["night rainy", "Dusk", "my photos test"]


def test_labels_of_one_domain_differ_by_their_split(describe):
    names = [describe(f"set_fog_{split}", domain="fog", split=split) for split in ("train", "test")]
    names.append(describe("set_clear_test", domain="daytime_clear", split="test"))
    assert list(domain_labels(names).values()) == ["fog train", "fog test", "daytime clear"]


def test_labels_that_metadata_cannot_tell_apart_are_the_names(describe):
    names = [describe(f"{prefix}_fog_test", domain="fog", split="test") for prefix in ("one", "two")]
    assert domain_labels(names) == {name: name for name in names}


def test_written_results_read_back_as_they_were(tmp_path):
    metadata = {"config": "configs/soma.yaml", "iteration": 400}
    written = write_results(tmp_path, RESULTS, CLEAR, LABELS, metadata)
    content = load_results(tmp_path)
    assert (content["metadata"], content["source"], content["labels"]) == (metadata, CLEAR, LABELS)
    assert math.isnan(content["results"][NIGHT]["voc"]["AP50-bus"])
    again = summarize(content["results"], content["source"], content["labels"])
    assert (again.voc_ap50, again.coco_ap) == (written.voc_ap50, written.coco_ap)
    assert format_table(again) == format_table(written)
    assert content["summary"]["voc_AP50"]["relative"] == pytest.approx(65)


def test_results_of_version_0_1_have_no_labels_and_are_read_with_the_splits_names(tmp_path):
    write_results(tmp_path, RESULTS, CLEAR, LABELS)
    content = json.loads((tmp_path / "results.json").read_text())
    del content["labels"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    again = load_results(tmp_path)
    assert again["labels"] == {name: name for name in RESULTS}
    assert row(format_table(summarize(again["results"], CLEAR, again["labels"])), FOG)[:2] == ["unseen", "40"]


def test_results_json_is_strict_json_without_nan(tmp_path):
    write_results(tmp_path, RESULTS, CLEAR)

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert content["results"][NIGHT]["voc"]["AP50-bus"] is None


def test_markdown_stands_alone_with_metadata_tables_and_chart(tmp_path):
    write_results(tmp_path, RESULTS, CLEAR, LABELS, {"weights": "model_final.pth"})
    text = (tmp_path / "results.md").read_text()
    for part in ("- weights: model_final.pth", f"`{FOG}`", "| daytime clear ", "| mean of unseen ", "(results.png)"):
        assert part in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "results.md", "results.png"]


def test_reading_something_else_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="other.json is not a results file"):
        load_results(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        load_results(tmp_path)


def test_bars_of_the_chart_are_as_high_as_the_scores(tmp_path):
    draw_domain_chart({"clear": 80.0, "fog": 40.0, "rain": NAN}, "clear", tmp_path / "chart.png")
    image = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB")).astype(int)
    gray, blue = (np.abs(image - color).sum(2) < 12 for color in ([0x8A, 0x94, 0xA6], [0x00, 0x72, 0xB2]))
    axis = gray.nonzero()[0].max()
    # Below the legend, whose patches are in the first tenth.
    top = {
        name: (mask[len(image) // 10 :].nonzero()[0].min() + len(image) // 10)
        for name, mask in (("g", gray), ("b", blue))
    }
    assert (axis - top["g"]) / (axis - top["b"]) == pytest.approx(2, abs=0.03)
    assert (tmp_path / "chart.png").stat().st_size < 200_000


@pytest.mark.parametrize("scores, source", [({"only": 3.0}, None), ({"only": 3.0}, "only"), ({"a": NAN}, None)])
def test_chart_of_few_splits_is_drawn(scores, source, tmp_path):
    draw_domain_chart(scores, source, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 300
