"""tools/prepare_data.py writes one COCO json of each data set, from a tiny copy in the real format."""

import json
from collections.abc import Callable
from pathlib import Path

import prepare_data
import pytest
from data_fixtures import write_acdc, write_bdd100k, write_cityscapes, write_coco, write_exdark, write_json
from voc_fixtures import hash_tree, write_annotation, write_image, write_list

import soma_det  # noqa: F401
from soma_det.data.datasets.catalog import CATALOG
from soma_det.data.datasets.class_lists import CLASS_LISTS, class_numbers

BOX = (11, 6, 30, 20)  # 1-based, inclusive; [10, 5, 20, 15] in a COCO json


def prepare(name: str, root: Path, *options: str) -> dict:
    """The json that the tool writes; the source is byte-equal afterwards."""
    before, output = hash_tree(root), root.parent / f"{name}.json"
    prepare_data.main(prepare_data.parse_args([name, "--root", str(root), "--output", str(output), *options]))
    assert hash_tree(root) == before
    return json.loads(output.read_text())


def boxes(content: dict) -> list[tuple[str, list[float], int]]:
    """(class, box, crowd) in the json's order."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [(names[a["category_id"]], a["bbox"], a["iscrowd"]) for a in content["annotations"]]


def files(content: dict) -> list[str]:
    return [Path(image["file_name"]).name for image in content["images"]]


def write_devkit(root: Path, split: str, suffix: str = ".jpg", name: str = "car") -> Path:
    """A devkit of two images: one with an object that is difficult, one without objects."""
    write_list(root, split, ["a", "b"])
    for image_id, objects in (("a", [(name, BOX), ("unicorn", BOX)]), ("b", [])):
        write_image(root / "JPEGImages" / f"{image_id}{suffix}")
        write_annotation(root / "Annotations" / f"{image_id}.xml", objects)
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    return root


def write_dawn(root: Path) -> Path:
    folder = root / "Fog"
    write_image(folder / "foggy-001.jpg")
    write_image(folder / "foggy-002.jpg")  # without an annotation file
    write_annotation(folder / "Fog_PASCAL_VOC" / "foggy-001.xml", [("motorcycle", BOX), ("person", BOX)])
    return root


def test_cityscapes_boxes_go_round_what_is_visible_and_groups_are_crowds(tmp_path):
    content = prepare("cityscapes_val", write_cityscapes(tmp_path / "cityscapes"))
    assert boxes(content) == [
        ("car", [10, 10, 10, 10], 0),  # the truck hides its right half, the license plate nothing
        ("truck", [20, 10, 10, 10], 0),
        ("rider", [21, 11, 5, 5], 0),
        ("person", [40, 10, 11, 11], 1),
    ]
    assert content["info"]["left_out"] == {"caravan": 1}
    assert content["info"]["faults"] == {"objects dropped that others hide": 1}


def test_images_without_objects_stay_in(tmp_path):
    content = prepare("cityscapes_val", write_cityscapes(tmp_path / "cityscapes"))
    assert files(content) == ["aachen_000001_000019_leftImg8bit.png", "aachen_000002_000019_leftImg8bit.png"]
    assert {a["image_id"] for a in content["annotations"]} == {1}


def test_foggy_cityscapes_takes_the_densities_asked_for_and_the_boxes_of_the_clear_image(tmp_path):
    root = write_cityscapes(tmp_path / "cityscapes")
    clear = boxes(prepare("cityscapes_val", root))
    dense = prepare("cityscapes_foggy_val", root)
    assert [name[-8:-4] for name in files(dense)] == ["0.02", "0.02"] and boxes(dense) == clear
    every = prepare("cityscapes_foggy_val", root, "--beta", "0.005", "0.01", "0.02")
    assert len(every["images"]) == 6 and boxes(every) == clear * 3


def test_every_rain_of_rainy_cityscapes_has_the_boxes_of_the_clear_image(tmp_path):
    root = write_cityscapes(tmp_path / "cityscapes")
    rainy = prepare("cityscapes_rainy_val", root)
    assert len(rainy["images"]) == 4 and boxes(rainy) == boxes(prepare("cityscapes_val", root)) * 2


def test_an_image_of_another_size_than_its_polygons_is_an_error(tmp_path):
    root = write_cityscapes(tmp_path / "cityscapes")
    write_image(root / "leftImg8bit/val/aachen/aachen_000001_000019_leftImg8bit.png", 32, 24)
    with pytest.raises(OSError, match="1 of the 2 images.* of another size .*aachen_000001"):
        prepare("cityscapes_val", root)


def test_bdd100k_goes_by_names_and_ignored_classes_are_crowds(tmp_path):
    content = prepare("bdd100k_day_val", write_bdd100k(tmp_path / "bdd100k"))
    box = [10, 5, 20, 15]  # the last pixel counts
    assert boxes(content) == [
        ("pedestrian", box, 0),
        ("car", box, 1),
        ("car", box, 1),
        ("truck", box, 1),
        ("motorcycle", box, 0),
    ]
    assert content["info"]["left_out"] == {"lane/single white (no box)": 1}


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("bdd100k_val", [], ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]),
        ("bdd100k_night_val", [], ["a.jpg", "c.jpg", "d.jpg"]),
        ("bdd100k_rainy_val", [], ["d.jpg"]),
        ("bdd100k_val", ["--timeofday", "night", "--weather", "clear"], ["a.jpg", "c.jpg"]),
    ],
)
def test_bdd100k_is_chosen_by_time_and_weather_and_frames_without_labels_stay(tmp_path, name, options, expected):
    assert files(prepare(name, write_bdd100k(tmp_path / "bdd100k"), *options)) == expected


def test_the_bdd100k_file_of_2018_has_other_names_and_the_same_classes(tmp_path):
    root = write_bdd100k(tmp_path / "bdd100k")
    path = root / "labels/det_20/det_val.json"
    older = path.read_text().replace('"pedestrian"', '"person"')
    path.unlink()
    (root / "labels/bdd100k_labels_images_val.json").write_text(older)
    assert boxes(prepare("bdd100k_day_val", root))[0][0] == "pedestrian"


def test_an_attribute_that_no_frame_has_is_an_error_that_lists_those_there(tmp_path):
    with pytest.raises(ValueError, match=r"timeofday.*nite.*'daytime': 1, 'night': 3, 'undefined': 1"):
        prepare("bdd100k_val", write_bdd100k(tmp_path / "bdd100k"), "--timeofday", "nite")


def test_acdc_takes_the_images_of_one_condition_and_their_boxes_only(tmp_path):
    content = prepare("acdc_fog_val", write_acdc(tmp_path / "acdc"))
    assert files(content) == [f"GOPR0475_frame_00000{n}_rgb_anon.png" for n in (1, 2)]
    assert boxes(content) == [("car", [10, 5, 20, 15], 0), ("bicycle", [10, 5, 20, 15], 1)]
    assert content["info"]["faults"] == {"boxes of images that the json does not list": 1}


def test_dawn_takes_the_names_of_diverse_weather(tmp_path):
    content = prepare("dawn_fog", write_dawn(tmp_path / "DAWN"))
    assert boxes(content) == [("motor", [10, 5, 20, 15], 0), ("person", [10, 5, 20, 15], 0)]
    assert content["info"]["faults"] == {"images without an annotation file, left out": 1}


def test_rtts_is_a_devkit_of_png_images(tmp_path):
    content = prepare("rtts_test", write_devkit(tmp_path / "RTTS", "test", ".png", "motorbike"))
    assert files(content) == ["a.png", "b.png"] and boxes(content) == [("motor", [10, 5, 20, 15], 0)]
    assert content["info"]["left_out"] == {"unicorn": 1}


def test_sim10k_is_the_cars_of_its_devkit(tmp_path):
    write_devkit(tmp_path / "sim10k" / "VOC2012", "trainval10k")
    content = prepare("sim10k_train", tmp_path / "sim10k")
    assert content["categories"] == [{"id": 1, "name": "car"}] and boxes(content) == [("car", [10, 5, 20, 15], 0)]


def test_difficult_objects_are_trained_on_and_do_not_count_in_tests(tmp_path):
    root = tmp_path / "VOCdevkit"
    for kit, split in (("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")):
        write_devkit(root / kit, split)
    assert [crowd for *_, crowd in boxes(prepare("voc_trainval", root))] == [0, 0]
    assert [crowd for *_, crowd in boxes(prepare("voc_test", root))] == [1]


@pytest.mark.parametrize("style, classes", [("clipart", "voc"), ("watercolor", "six"), ("comic", "six")])
def test_the_art_sets_are_devkits_named_by_their_style(tmp_path, style, classes):
    content = prepare(f"{style}_test", write_devkit(tmp_path / style, "test"))
    assert [c["name"] for c in content["categories"]] == list(CLASS_LISTS[classes])
    assert len(content["images"]) == 2 and boxes(content)[0][0] == "car"


def test_exdark_reads_past_the_header_and_finds_files_in_spite_of_capitals(tmp_path):
    root = write_exdark(tmp_path / "exdark")
    assert boxes(prepare("exdark_train", root)) == [("bicycle", [10, 5, 20, 15], 0)]
    content = prepare("exdark_test", root)
    assert files(content) == ["2015_00003.JPG"]
    assert boxes(content) == [("people", [10, 5, 20, 15], 0), ("car", [30, 5, 20, 15], 1)]


def test_coco_gives_a_subset_of_its_classes_by_name_and_keeps_the_other_images(tmp_path):
    content = prepare("coco_exdark_val", write_coco(tmp_path / "coco"))
    assert boxes(content) == [("people", [10.5, 5, 20, 15], 1), ("table", [50, 40, 14, 8], 0)]
    assert len(content["images"]) == 3 and content["info"]["left_out"] == {"giraffe": 1}
    assert content["info"]["faults"] == {"boxes cut at the image's edge": 1}


def test_a_class_list_or_names_replace_the_usual_classes(tmp_path):
    root = write_bdd100k(tmp_path / "bdd100k")
    names = [name for name, *_ in boxes(prepare("bdd100k_day_val", root, "--classes", "diverse_weather"))]
    assert names == ["person", "car", "car", "truck", "motor"]
    assert {name for name, *_ in boxes(prepare("bdd100k_day_val", root, "--classes", "truck,car"))} == {"car", "truck"}
    with pytest.raises(ValueError, match="--classes is 'car,Car'"):
        prepare("bdd100k_day_val", root, "--classes", "car,Car")


def test_a_class_is_found_by_its_own_name_before_one_of_the_same_meaning():
    assert class_numbers(["person", "pedestrian"]) == {"people": 1, "person": 0, "pedestrian": 1}


def test_the_json_says_where_it_comes_from_and_on_what_terms(tmp_path):
    content = prepare("bdd100k_night_val", write_bdd100k(tmp_path / "bdd100k"))
    assert content["info"]["image_root"] == "bdd100k" and content["info"]["url"] == "http://bdd-data.berkeley.edu"
    assert content["info"]["options"] == {"split": "val", "timeofday": ["night"]}
    assert "not-for-profit" in content["licenses"][0]["name"]
    assert all((tmp_path / "bdd100k" / image["file_name"]).is_file() for image in content["images"])


WRITERS: dict[str, Callable[[Path], Path]] = {
    "cityscapes_val": write_cityscapes,
    "bdd100k_val": write_bdd100k,
    "acdc_fog_val": write_acdc,
    "dawn_fog": write_dawn,
    "exdark_test": write_exdark,
    "coco_val": write_coco,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_json_inside_the_source_is_refused(tmp_path, name):
    root = WRITERS[name](tmp_path / "source")
    before = hash_tree(root)
    with pytest.raises(ValueError, match="inside the source"):
        prepare_data.main(prepare_data.parse_args([name, "--root", str(root), "--output", str(root / "new.json")]))
    assert hash_tree(root) == before


@pytest.mark.parametrize("name", WRITERS)
def test_an_incomplete_copy_is_an_error_that_says_what_is_missing(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no .*Set --root"):
        prepare(name, tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: set --root"):
        prepare(name, tmp_path / "nowhere")


def test_missing_images_are_an_error_above_one_percent(tmp_path):
    root = write_bdd100k(tmp_path / "bdd100k")
    (root / "images/100k/val/c.jpg").unlink()
    with pytest.raises(OSError, match=r"1 of the 5 images .*1 without an image \(such as images/100k/val/c.jpg\)"):
        prepare("bdd100k_val", root)


def test_one_missing_image_in_a_hundred_is_noted_in_the_json(tmp_path):
    root = write_bdd100k(tmp_path / "bdd100k")
    frames = json.loads((root / "labels/det_20/det_val.json").read_text())
    more = [{**frames[2], "name": f"{n}.jpg"} for n in range(100)]
    for entry in more[1:]:
        write_image(root / "images/100k/val" / entry["name"])
    write_json(root / "labels/det_20/det_val.json", frames + more)
    skipped = prepare("bdd100k_val", root)["info"]["skipped"]
    assert skipped == {"without an image": {"images": 1, "first": ["images/100k/val/0.jpg"]}}


@pytest.mark.parametrize("option, name", [("--beta", "cityscapes_rainy_val"), ("--weather", "acdc_fog_val")])
def test_an_option_of_another_data_set_is_an_error(tmp_path, option, name):
    with pytest.raises(ValueError, match=f"{option} is an option of .*, not of {name}"):
        prepare_data.main(prepare_data.parse_args([name, "--root", str(tmp_path), option, "0.02"]))


def test_every_data_set_of_the_catalog_tells_its_terms_and_a_command():
    for name, entry in CATALOG.items():
        assert entry.source.terms and entry.source.homepage.startswith("http") and entry.classes, name
        assert name in entry.command
