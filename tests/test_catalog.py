"""Registering data sets from a config."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from voc_fixtures import CLASSES, real_weather_root, write_domain, write_image

import soma_det  # noqa: F401
from soma_det.config import add_soma_config
from soma_det.data import check_data_exists, register_coco_json, register_from_config, register_weather_datasets
from soma_det.data.datasets import register


@pytest.fixture(autouse=True)
def _clean_catalogs():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def cfg(tmp_path):
    """A config for the domains rainy (lists train and val) and Night-Sunny (train) under the prefix "toy"."""
    write_domain(tmp_path / "toy", "rainy", {"train": ["a", "b"], "val": ["b"]})
    write_domain(tmp_path / "toy", "Night-Sunny", {"train": ["n"]})
    cfg = get_cfg()
    add_soma_config(cfg)
    cfg.DATASETS.WEATHER.PREFIX = "toy"
    cfg.DATASETS.WEATHER.ROOT = str(tmp_path / "toy")
    cfg.DATASETS.WEATHER.DOMAINS = ["rainy", "night_sunny"]
    cfg.DATASETS.TRAIN = ("toy_rainy_train",)
    cfg.DATASETS.TEST = ("toy_rainy_val", "toy_night_sunny_train")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    return cfg


def write_coco(folder, change=lambda content: None):
    """A COCO json of one image and two classes whose ids are neither sorted nor dense; return its path."""
    write_image(folder / "images" / "a.jpg")
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 9, "name": "truck"}, {"id": 3, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 5, 20, 15], "area": 300, "iscrowd": 0}],
    }
    change(content)
    path = folder / "own.json"
    path.write_text(json.dumps(content))
    return path


def use_coco(cfg, tmp_path, **kwargs):
    cfg.DATASETS.COCO_JSON = [["own", str(write_coco(tmp_path, **kwargs)), str(tmp_path / "images")]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("own",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2


def test_train_test_and_every_list_on_disk_are_registered(cfg):
    register_from_config(cfg)
    names = {name for name in DatasetCatalog if name.startswith("toy_")}
    assert names == {
        "toy_rainy_train",
        "toy_rainy_val",
        "toy_rainy_test",
        "toy_night_sunny_train",
        "toy_night_sunny_test",
    }


def test_metadata_tells_classes_domain_and_split(cfg):
    register_from_config(cfg)
    metadata = MetadataCatalog.get("toy_night_sunny_train")
    assert (metadata.thing_classes, metadata.domain, metadata.split) == (list(CLASSES), "night_sunny", "train")


def test_registering_needs_no_data_and_asking_for_it_says_what_is_missing(tmp_path):
    name, _ = register_weather_datasets("toy", str(tmp_path / "nowhere"), ["rainy"], CLASSES)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        DatasetCatalog.get(name)


def test_annotations_are_parsed_once_and_every_caller_gets_its_own(cfg, monkeypatch):
    calls = []
    load = register.load_voc_domain
    monkeypatch.setattr(register, "load_voc_domain", lambda *args: calls.append(args) or load(*args))
    register_from_config(cfg)
    first = DatasetCatalog.get("toy_rainy_train")
    first[0]["annotations"].clear()
    assert [len(record["annotations"]) for record in DatasetCatalog.get("toy_rainy_train")] == [2, 2]
    assert len(calls) == 1


def test_registering_twice_changes_nothing(cfg):
    register_from_config(cfg)
    loader = DatasetCatalog["toy_rainy_train"]
    register_from_config(cfg)
    assert DatasetCatalog["toy_rainy_train"] is loader


def test_registering_with_other_arguments_replaces(cfg):
    register_from_config(cfg)
    cfg.DATASETS.WEATHER.CLASSES = ["person", "car"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    register_from_config(cfg)
    assert MetadataCatalog.get("toy_rainy_train").thing_classes == ["person", "car"]
    assert [a["category_id"] for a in DatasetCatalog.get("toy_rainy_train")[0]["annotations"]] == [1, 0]


def test_the_default_root_is_below_detectron2s(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    assert register.weather_root("") == "elsewhere/diverseWeather"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert register.weather_root("") == "datasets/diverseWeather"
    assert register.weather_root("mine") == "mine"


def test_a_name_that_is_not_registered_is_an_error_with_the_closest_that_is(cfg):
    cfg.DATASETS.TRAIN = ("toy_rany_train",)
    with pytest.raises(ValueError, match="'toy_rany_train'.*Did you mean 'toy_rainy_train'.*toy_night_sunny_train"):
        register_from_config(cfg)


def test_a_wrong_number_of_classes_is_an_error_with_the_right_one(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(ValueError, match="ROI_HEADS.NUM_CLASSES is 80.*7 classes: bus, bike.*Set NUM_CLASSES to 7"):
        register_from_config(cfg)


def test_retinanet_is_checked_by_its_own_key(cfg):
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    with pytest.raises(ValueError, match="RETINANET.NUM_CLASSES is 3"):
        register_from_config(cfg)


def test_a_name_that_other_code_has_taken_is_an_error():
    DatasetCatalog.register("toy_rainy_train", list)
    with pytest.raises(ValueError, match="'toy_rainy_train' exists already.*PREFIX"):
        register_weather_datasets("toy", "somewhere", ["rainy"], CLASSES)


@pytest.mark.parametrize(
    "domains, classes", [([], CLASSES), (["rainy"], []), (["rainy"], ["car", "car"]), (["rainy"], ["car", "Car"])]
)
def test_domains_and_distinct_classes_are_required(domains, classes):
    with pytest.raises(ValueError, match="DATASETS.WEATHER needs"):
        register_weather_datasets("toy", "somewhere", domains, classes)


def test_a_missing_test_list_is_found_without_reading_annotations(cfg):
    register_from_config(cfg)
    check_data_exists(["toy_rainy_train", "toy_rainy_val"])
    with pytest.raises(FileNotFoundError, match="no list .*test.txt"):
        check_data_exists(["toy_rainy_train", "toy_rainy_test"])


def test_a_coco_json_loads_with_classes_by_rising_id(cfg, tmp_path):
    use_coco(cfg, tmp_path)
    register_from_config(cfg)
    assert MetadataCatalog.get("own").thing_classes == ["car", "truck"]
    (record,) = DatasetCatalog.get("own")
    assert record["file_name"] == str(tmp_path / "images" / "a.jpg")
    assert record["annotations"][0]["category_id"] == 1


def test_a_coco_json_is_checked_against_the_number_of_classes(cfg, tmp_path):
    use_coco(cfg, tmp_path)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    with pytest.raises(ValueError, match="'own' has 2 classes: car, truck"):
        register_from_config(cfg)


def test_data_sets_that_number_their_classes_otherwise_do_not_go_together(cfg, tmp_path):
    use_coco(cfg, tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("own",), ("toy_rainy_train",)
    cfg.DATASETS.WEATHER.CLASSES = ["truck", "car"]
    with pytest.raises(ValueError, match="'toy_rainy_train' has the classes truck, car, but 'own' has car, truck"):
        register_from_config(cfg)
    cfg.DATASETS.WEATHER.CLASSES = ["car", "truck"]
    register_from_config(cfg)


def test_a_changed_coco_json_is_read_again(cfg, tmp_path):
    import os

    use_coco(cfg, tmp_path)
    register_from_config(cfg)
    path = write_coco(tmp_path, lambda content: content["categories"][0].update(name="lorry"))
    os.utime(path, ns=(1, 1))
    register_from_config(cfg)
    assert MetadataCatalog.get("own").thing_classes == ["car", "lorry"]


COCO_FAULTS = {
    "list 'images'": lambda content: content.update(images=[]),
    "list 'categories'": lambda content: content.pop("categories"),
    "list 'annotations'": lambda content: content.update(annotations={}),
    r"annotations\[0\] needs the keys": lambda content: content["annotations"][0].pop("bbox"),
    r"images\[0\] needs the keys": lambda content: content.update(images=["a.jpg"]),
    "some id occurs twice in 'annotations'": lambda content: content.update(annotations=content["annotations"] * 2),
    r"boxes of the categories \[4\]": lambda content: content["annotations"][0].update(category_id=4),
}


@pytest.mark.parametrize("words", COCO_FAULTS)
def test_a_malformed_coco_json_is_an_error_that_names_the_file_and_the_fault(cfg, tmp_path, words):
    use_coco(cfg, tmp_path, change=COCO_FAULTS[words])
    with pytest.raises(ValueError, match=rf"own\.json is not in COCO's format: .*{words}"):
        register_from_config(cfg)


@pytest.mark.parametrize("content", [b'{"images": [', b"\xff\xfe\x00", b"[]"])
def test_a_file_that_is_not_a_coco_json_is_an_error_that_names_the_file(cfg, tmp_path, content):
    use_coco(cfg, tmp_path)
    (tmp_path / "own.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"own\.json is not in COCO's format"):
        register_from_config(cfg)


@pytest.mark.parametrize("missing", ["own.json", "images"])
def test_a_missing_coco_file_or_folder_is_an_error_that_names_it(cfg, tmp_path, missing):
    use_coco(cfg, tmp_path)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=missing):
        register_from_config(cfg)


def test_the_fourth_item_of_a_coco_entry_is_the_domain_and_without_it_there_is_none(cfg, tmp_path):
    use_coco(cfg, tmp_path)
    (entry,) = cfg.DATASETS.COCO_JSON
    cfg.DATASETS.COCO_JSON = [entry, ["own_fog", *entry[1:], "foggy"]]
    register_from_config(cfg)
    assert MetadataCatalog.get("own_fog").domain == "foggy"
    assert MetadataCatalog.get("own").get("domain") is None


def test_registering_a_coco_json_with_another_domain_replaces(tmp_path):
    source = str(write_coco(tmp_path)), str(tmp_path / "images")
    for domain in ("foggy", "rainy"):
        register_coco_json("own", *source, domain)
    assert MetadataCatalog.get("own").domain == "rainy"


def test_a_name_that_was_removed_from_the_catalog_can_be_registered_with_other_classes(cfg):
    register_from_config(cfg)
    DatasetCatalog.remove("toy_rainy_train")
    register_weather_datasets("toy", "elsewhere", ["rainy"], ["car"])
    assert MetadataCatalog.get("toy_rainy_train").thing_classes == ["car"]


@pytest.mark.parametrize(
    "entry", ["own.json", ["own", "own.json"], ["", "own.json", "images"], ["own", "own.json", "images", ""], [1, 2, 3]]
)
def test_a_malformed_entry_of_coco_json_is_an_error(cfg, entry):
    cfg.DATASETS.COCO_JSON = [entry]
    with pytest.raises(ValueError, match=r"entry .*: write \[name, json file, folder of images\]"):
        register_from_config(cfg)


@pytest.mark.skipif(real_weather_root() is None, reason="needs $SOMA_DET_REAL_WEATHER")
def test_real_photographs_register_by_root_and_domains(cfg):
    cfg.DATASETS.WEATHER.PREFIX = "real"
    cfg.DATASETS.WEATHER.ROOT = str(real_weather_root())
    cfg.DATASETS.WEATHER.DOMAINS = ["daytime_clear", "daytime_foggy", "rainy"]
    cfg.DATASETS.TRAIN = ("real_daytime_clear_train",)
    cfg.DATASETS.TEST = ("real_daytime_clear_test", "real_daytime_foggy_train", "real_rainy_train")
    register_from_config(cfg)
    assert [len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN + cfg.DATASETS.TEST] == [420, 120, 282, 199]
