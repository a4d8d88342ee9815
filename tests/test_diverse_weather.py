"""Loading a weather domain: boxes, and everything that is wrong with real annotation files."""

import logging

import pytest
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from voc_fixtures import (
    CLASSES,
    OBJECTS,
    hash_tree,
    object_xml,
    real_weather_root,
    write_annotation,
    write_domain,
    write_image,
    write_list,
)

import soma_det  # noqa: F401
from soma_det.data.datasets.diverse_weather import find_domain_folder, load_voc_domain

BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;">]>
<annotation><object><name>&y;</name></object></annotation>"""


@pytest.fixture
def report(caplog):
    """The line that load_voc_domain logs about what it found."""
    caplog.set_level(logging.INFO, logger="soma_det.data.datasets.diverse_weather")
    return lambda: caplog.records[-1].getMessage()


def load_one(tmp_path, objects=(), extra="", **image):
    """Load a domain of one image, 64 x 48 unless told, with these objects; return its record."""
    devkit = write_domain(tmp_path, "rainy", {"train": ["a"]}, objects)
    write_annotation(devkit / "Annotations" / "a.xml", objects, extra)
    write_image(devkit / "JPEGImages" / "a.jpg", **image)
    (record,) = load_voc_domain(tmp_path, "rainy", "train", CLASSES)
    return record


def load_broken(tmp_path, break_one, count):
    """Load a domain of ``count`` images after ``break_one(devkit)``, which spoils image "p0"."""
    devkit = write_domain(tmp_path, "rainy", {"train": ["p0"]})
    for kind, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        for index in range(1, count):
            (devkit / kind / f"p{index}.{suffix}").hardlink_to(devkit / kind / f"p0.{suffix}")
        other = (devkit / kind / f"p0.{suffix}").read_bytes()
        (devkit / kind / f"p0.{suffix}").unlink()
        (devkit / kind / f"p0.{suffix}").write_bytes(other)
    write_list(devkit, "train", [f"p{index}" for index in range(count)])
    break_one(devkit)
    return load_voc_domain(tmp_path, "rainy", "train", CLASSES)


def test_boxes_lose_one_pixel_at_their_left_and_top_only(tmp_path):
    record = load_one(tmp_path, OBJECTS)
    assert [annotation["bbox"] for annotation in record["annotations"]] == [[10, 5, 30, 20], [40, 20, 44, 40]]
    assert [annotation["category_id"] for annotation in record["annotations"]] == [2, 4]
    assert {annotation["bbox_mode"] for annotation in record["annotations"]} == {BoxMode.XYXY_ABS}


def test_a_record_holds_what_detectron2_expects(tmp_path):
    record = load_one(tmp_path, OBJECTS)
    assert set(record) == {"file_name", "image_id", "height", "width", "annotations"}
    assert (record["image_id"], record["width"], record["height"]) == ("a", 64, 48)
    assert record["file_name"] == str(tmp_path / "rainy" / "VOC2007" / "JPEGImages" / "a.jpg")


def test_records_keep_the_order_of_the_list(tmp_path):
    write_domain(tmp_path, "rainy", {"train": ["b", "a", "c"]})
    assert [r["image_id"] for r in load_voc_domain(tmp_path, "rainy", "train", CLASSES)] == ["b", "a", "c"]


def test_loading_leaves_every_file_as_it_was(tmp_path):
    write_domain(tmp_path, "rainy", {"train": ["a", "b"]})
    before = hash_tree(tmp_path)
    for _ in range(2):
        load_voc_domain(tmp_path, "rainy", "train", CLASSES)
    assert hash_tree(tmp_path) == before


@pytest.mark.parametrize("folder", ["Night-Sunny", "night_sunny", "night sunny", "NightSunny"])
def test_a_domain_is_found_however_its_folder_is_spelled(tmp_path, folder):
    write_domain(tmp_path, folder, {"train": ["a"]})
    assert len(load_voc_domain(tmp_path, "night_sunny", "train", CLASSES)) == 1


def test_the_exact_spelling_of_a_domain_wins(tmp_path):
    for folder in ("Night-Sunny", "night_sunny"):
        write_domain(tmp_path, folder, {"train": ["a"]})
    assert find_domain_folder(tmp_path, "night_sunny").name == "night_sunny"


def test_two_spellings_of_a_domain_without_the_exact_one_are_an_error(tmp_path):
    for folder in ("Night-Sunny", "NIGHT_SUNNY"):
        write_domain(tmp_path, folder, {"train": ["a"]})
    with pytest.raises(ValueError, match="NIGHT_SUNNY.*Night-Sunny"):
        find_domain_folder(tmp_path, "night_sunny")


@pytest.mark.parametrize("orientation, size", [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_width_and_height_are_those_of_the_image_that_detectron2_reads(tmp_path, orientation, size):
    from PIL import Image

    exif = Image.Exif()
    exif[274] = orientation
    record = load_one(tmp_path, OBJECTS, exif=exif)
    assert (record["width"], record["height"]) == size
    assert read_image(record["file_name"], "RGB").shape[:2] == (record["height"], record["width"])


def test_a_wrong_size_in_the_annotation_does_not_count(tmp_path):
    wrong = "<size><width>0</width><height>9</height></size>"
    assert load_one(tmp_path, OBJECTS, extra=wrong)["width"] == 64


def test_png_images_load_too(tmp_path):
    devkit = write_domain(tmp_path, "rainy", {"train": ["a"]})
    (devkit / "JPEGImages" / "a.jpg").unlink()
    write_image(devkit / "JPEGImages" / "a.PNG")
    assert load_voc_domain(tmp_path, "rainy", "train", CLASSES)[0]["file_name"].endswith("a.PNG")


def test_ids_with_dots_keep_them(tmp_path):
    write_domain(tmp_path, "daytime_foggy", {"train": ["aachen_foggy_beta_0.02"]})
    assert load_voc_domain(tmp_path, "daytime_foggy", "train", CLASSES)[0]["image_id"] == "aachen_foggy_beta_0.02"


def test_float_coordinates_stay_exact(tmp_path):
    assert load_one(tmp_path, [("car", (1.25, 2.5, 10.75, 20.125))])["annotations"][0]["bbox"] == [
        0.25,
        1.5,
        10.75,
        20.125,
    ]


def test_a_box_that_is_turned_round_is_turned_back_and_counted(tmp_path, report):
    assert load_one(tmp_path, [("car", (30, 6, 11, 20))])["annotations"][0]["bbox"] == [10, 5, 30, 20]
    assert "boxes turned round 1" in report()


@pytest.mark.parametrize("box", [(30, 6, 29, 20), (11, 21, 30, 20), (30, 21, 29, 20), (90, 6, 89, 20)])
def test_an_empty_box_is_dropped_and_counted(tmp_path, report, box):
    assert len(load_one(tmp_path, [*OBJECTS, ("car", box)])["annotations"]) == 2
    assert "empty boxes dropped 1" in report() and "turned" not in report()


def test_a_box_of_one_pixel_is_kept(tmp_path, report):
    assert load_one(tmp_path, [("car", (30, 6, 30, 6))])["annotations"][0]["bbox"] == [29, 5, 30, 6]
    assert "dropped" not in report()


def test_a_box_narrower_than_a_pixel_is_kept_as_it_is(tmp_path, report):
    assert load_one(tmp_path, [("car", (30.5, 6, 30.25, 20))])["annotations"][0]["bbox"] == [29.5, 5, 30.25, 20]
    assert "turned" not in report()


def test_class_names_match_whatever_their_case(tmp_path, report):
    write_domain(tmp_path, "rainy", {"train": ["a"]}, [("Car", (1, 1, 9, 9)), ("PERSON", (1, 1, 9, 9))])
    for classes in (("car", "person"), ("CAR", "Person")):
        (record,) = load_voc_domain(tmp_path, "rainy", "train", classes)
        assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 1]
        assert f"({classes[0]} 1, {classes[1]} 1)" in report() and "left out" not in report()


def test_a_box_is_cut_at_the_image_and_counted(tmp_path, report):
    assert load_one(tmp_path, [("car", (-4, 6, 99, 20))])["annotations"][0]["bbox"] == [0, 5, 64, 20]
    assert "boxes cut at the image's edge 1" in report()


def test_a_box_over_the_whole_image_is_not_cut(tmp_path, report):
    assert load_one(tmp_path, [("car", (1, 1, 64, 48))])["annotations"][0]["bbox"] == [0, 0, 64, 48]
    assert "edge" not in report()


def test_a_box_outside_the_image_is_dropped_and_counted(tmp_path, report):
    assert len(load_one(tmp_path, [*OBJECTS, ("car", (70, 6, 90, 20))])["annotations"]) == 2
    assert "boxes dropped outside the image 1" in report()


@pytest.mark.parametrize(
    "extra",
    [
        "<object><name>car</name></object>",
        "<object><name>car</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax></bndbox></object>",
        object_xml("car", ("one", 1, 9, 9)),
        object_xml("car", ("nan", 1, 9, 9)),
        object_xml("car", (1, 1, "inf", 9)),
        object_xml("", (1, 1, 9, 9)),
    ],
)
def test_an_object_without_a_usable_name_or_box_is_dropped_and_counted(tmp_path, report, extra):
    assert len(load_one(tmp_path, OBJECTS, extra)["annotations"]) == 2
    assert "objects dropped without a name or box 1" in report()


@pytest.mark.parametrize(
    "old, new",
    [
        ("<name>car</name>", "<name>car</name><name>bus</name>"),
        ("<xmin>11</xmin>", "<xmin>11</xmin><xmin>3</xmin>"),
        ("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>"),
        ("<difficult>0</difficult>", "<difficult>0</difficult><difficult>0</difficult>"),
    ],
)
def test_of_doubled_tags_the_first_counts(tmp_path, report, old, new):
    (annotation,) = load_one(tmp_path, extra=object_xml(*OBJECTS[0]).replace(old, new))["annotations"]
    assert (annotation["category_id"], annotation["bbox"]) == (2, [10, 5, 30, 20])
    assert "objects with doubled tags 1" in report()


def test_objects_of_other_classes_are_left_out_and_named(tmp_path, report):
    assert len(load_one(tmp_path, [*OBJECTS, ("tram", (1, 1, 9, 9)), ("tram", (1, 1, 9, 9))])["annotations"]) == 2
    assert "left out, not in DATASETS.WEATHER.CLASSES: tram 2" in report()


def test_no_object_of_a_known_class_is_an_error_that_names_those_found(tmp_path):
    with pytest.raises(ValueError, match=r"Classes found: tram 1\. Set DATASETS\.WEATHER\.CLASSES"):
        load_one(tmp_path, [("tram", (1, 1, 9, 9))])


def test_an_image_without_objects_stays_in(tmp_path):
    devkit = write_domain(tmp_path, "rainy", {"train": ["a", "b"]})
    write_annotation(devkit / "Annotations" / "b.xml", [])
    assert [len(r["annotations"]) for r in load_voc_domain(tmp_path, "rainy", "train", CLASSES)] == [2, 0]


def test_a_list_may_have_blank_lines_and_repetitions(tmp_path, report):
    devkit = write_domain(tmp_path, "rainy", {"train": ["a", "b"]})
    (devkit / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb \r\na\r\n")
    assert [r["image_id"] for r in load_voc_domain(tmp_path, "rainy", "train", CLASSES)] == ["a", "b"]
    assert "repeated list entries 1" in report()


FAULTS = {
    "without an image": lambda kit: (kit / "JPEGImages" / "p0.jpg").unlink(),
    "with an unreadable image": lambda kit: (kit / "JPEGImages" / "p0.jpg").write_bytes(b"no image"),
    "without a readable annotation file": lambda kit: (kit / "Annotations" / "p0.xml").unlink(),
    "with a broken annotation file": lambda kit: (kit / "Annotations" / "p0.xml").write_text("<annotation><obj"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_one_broken_image_in_a_hundred_is_skipped_and_named(tmp_path, report, kind):
    assert len(load_broken(tmp_path, FAULTS[kind], 100)) == 99
    assert f"SKIPPED 1 images: 1 {kind} (p0)" in report()


@pytest.mark.parametrize("kind", FAULTS)
def test_more_than_one_broken_image_in_a_hundred_is_an_error_that_names_it(tmp_path, kind):
    with pytest.raises(OSError, match=rf"1 of the 99 images .* more than 1%: 1 {kind} \(p0\)"):
        load_broken(tmp_path, FAULTS[kind], 99)


@pytest.mark.parametrize(
    "content", [BOMB, "", "<html></html>", '<?xml version="1.0" encoding="no-such"?><annotation/>']
)
def test_an_unsafe_or_foreign_annotation_file_counts_as_broken(tmp_path, content):
    with pytest.raises(OSError, match="1 with a broken annotation file"):
        load_broken(tmp_path, lambda kit: (kit / "Annotations" / "p0.xml").write_text(content), 2)


@pytest.mark.parametrize(
    "root, domain, split, words",
    [
        ("nowhere", "rainy", "train", "nowhere does not exist"),
        ("", "snowy", "train", "no folder for domain 'snowy'.*rainy"),
        ("", "rainy", "test", r"no list .*test\.txt.*train\.txt"),
    ],
)
def test_missing_data_is_an_error_that_says_what_is_missing_and_what_to_do(tmp_path, root, domain, split, words):
    write_domain(tmp_path, "rainy", {"train": ["a"]})
    with pytest.raises(FileNotFoundError, match=words) as error:
        load_voc_domain(tmp_path / root, domain, split, CLASSES)
    for remedy in ("DATASETS.WEATHER.ROOT", "DETECTRON2_DATASETS", "datasets/README.md"):
        assert remedy in str(error.value)


def test_an_empty_list_is_an_error(tmp_path):
    write_list(write_domain(tmp_path, "rainy", {"train": ["a"]}), "train", [])
    with pytest.raises(ValueError, match="names no images"):
        load_voc_domain(tmp_path, "rainy", "train", CLASSES)


@pytest.mark.skipif(real_weather_root() is None, reason="needs $SOMA_DET_REAL_WEATHER")
@pytest.mark.parametrize(
    "domain, split, images, boxes",
    [("daytime_clear", "train", 420, 886), ("daytime_clear", "test", 120, 281), ("daytime_foggy", "train", 282, 1894)],
)
def test_real_photographs_load_with_every_box(domain, split, images, boxes):
    records = load_voc_domain(real_weather_root(), domain, split, CLASSES)
    assert (len(records), sum(len(record["annotations"]) for record in records)) == (images, boxes)
    for record in records:
        for x0, y0, x1, y1 in (annotation["bbox"] for annotation in record["annotations"]):
            assert 0 <= x0 < x1 <= record["width"] and 0 <= y0 < y1 <= record["height"]
