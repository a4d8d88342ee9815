"""tools/check_data.py counts, compares with published numbers, and draws."""

from dataclasses import replace
from pathlib import Path

import check_data
import pytest
from data_fixtures import clean_catalogs, prepare, write_acdc, write_bdd100k, write_cityscapes  # noqa: F401
from PIL import Image
from voc_fixtures import CLASSES, OBJECTS, hash_tree, write_domain

import soma_det  # noqa: F401
from soma_det.data.datasets.catalog import CATALOG

ROOT = Path(__file__).parents[1]


def check(tmp_path: Path, capsys, *arguments: str) -> str:
    """What the tool prints."""
    check_data.main(check_data.parse_args(["--output", str(tmp_path / "sheet.jpg"), *arguments]))
    return capsys.readouterr().out


def test_counts_are_per_data_set_and_class_with_crowds_and_empty_images_apart(tmp_path, capsys):
    prepare("cityscapes_val", write_cityscapes(tmp_path / "cityscapes"))
    prepare("acdc_fog_val", write_acdc(tmp_path / "acdc"))
    rows = [
        line.split("|") for line in check(tmp_path, capsys, "--dataset", "cityscapes_val", "acdc_fog_val").split("\n")
    ]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    assert ["cityscapes_val", "clear", "2", "1", "3", "1"] in cells
    assert ["acdc_fog_val", "fog", "2", "1", "1", "1"] in cells
    # person, rider, car, truck, bus, train, motorcycle, bicycle
    assert ["cityscapes_val", "0", "1", "1", "1", "0", "0", "0", "0"] in cells


def test_it_says_what_was_left_out_and_names_the_figure_and_the_terms(tmp_path, capsys):
    prepare("cityscapes_val", write_cityscapes(tmp_path / "cityscapes"))
    text = check(tmp_path, capsys, "--dataset", "cityscapes_val")
    assert "left out, other classes: caravan 1" in text
    assert "repaired or dropped: objects dropped that others hide 1" in text
    assert "published figure: AP50 61.3" in text and "TRAILab/DINO_Teacher" in text
    assert "terms: registration; non-commercial" in text


def test_a_copy_that_differs_from_the_published_numbers_is_told_so_with_the_remedy(tmp_path, capsys):
    prepare("cityscapes_val", write_cityscapes(tmp_path / "cityscapes"))
    text = check(tmp_path, capsys, "--dataset", "cityscapes_val")
    assert "DIFFERS from the published numbers: images 2 here, 500 there. Scores on this copy" in text
    assert "unpack the archives again" in text


def test_a_copy_that_agrees_is_told_so(tmp_path, capsys, monkeypatch):
    prepare("cityscapes_val", write_cityscapes(tmp_path / "cityscapes"))
    monkeypatch.setitem(CATALOG, "cityscapes_val", replace(CATALOG["cityscapes_val"], images=2, boxes={"car": 1}))
    text = check(tmp_path, capsys, "--dataset", "cityscapes_val")
    assert "agrees with the published numbers" in text and "DIFFERS" not in text


def test_another_choice_of_fog_or_classes_is_not_compared(tmp_path, capsys):
    root = write_cityscapes(tmp_path / "cityscapes")
    for options in (["--beta", "0.01"], ["--classes", "car,truck"]):
        prepare("cityscapes_foggy_val", root, *options)
        text = check(tmp_path, capsys, "--dataset", "cityscapes_foggy_val")
        assert "prepared with other options or classes" in text and "DIFFERS" not in text


def test_diverse_weather_is_compared_with_its_official_boxes(tmp_path, capsys):
    root = tmp_path / "diverseWeather"
    write_domain(root, "dusk_rainy", {"train": ["a", "b"]}, OBJECTS)
    before = hash_tree(root)
    text = check(tmp_path, capsys, "--dataset", "diverse_weather_dusk_rainy_train")
    assert "car 2 here, 34,240 there" in text and "person 2 here, 5,144 there" in text
    assert "AP50, VOC 11 points 59.3" in text
    assert hash_tree(root) == before
    assert CATALOG["diverse_weather_dusk_rainy_train"].classes == CLASSES


def test_a_config_is_checked_by_its_data_sets_and_those_that_are_absent_are_named(tmp_path, capsys):
    prepare("bdd100k_night_val", write_bdd100k(tmp_path / "bdd100k"))
    text = check(tmp_path, capsys, "--config-file", str(ROOT / "configs/datasets/bdd100k_day_to_night.yaml"))
    assert "DIFFERS from the numbers commonly cited, perhaps of another release: images 3 here, 3,929 there" in text
    assert "bdd100k_day_train: CANNOT BE USED. " in text and "prepare_data.py bdd100k_day_train --root" in text


def test_the_sheet_has_a_column_for_each_data_set(tmp_path, capsys):
    root = write_bdd100k(tmp_path / "bdd100k")
    for names in (["bdd100k_day_val"], ["bdd100k_day_val", "bdd100k_night_val"]):
        prepare(names[-1], root)
        check(tmp_path, capsys, "--dataset", *names, "--count", "1")
        with Image.open(tmp_path / "sheet.jpg") as sheet:
            assert sheet.width // check_data.CELL == len(names)


def test_no_data_at_all_and_wrong_names_are_errors(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="prepare_data.py acdc_fog_val"):
        check(tmp_path, capsys, "--dataset", "acdc_fog_val")
    with pytest.raises(ValueError, match="'acdc' is not in the catalog"):
        check(tmp_path, capsys, "--dataset", "acdc")
    with pytest.raises(SystemExit):
        check_data.parse_args([])
