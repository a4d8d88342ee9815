"""Data sets of the catalog: configs name them, and prepared json files are found by name."""

import json
from pathlib import Path

import pytest
from data_fixtures import clean_catalogs, prepare, write_acdc, write_bdd100k  # noqa: F401  (a fixture for every test)
from detectron2.data import DatasetCatalog, MetadataCatalog

import soma_det  # noqa: F401
from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.data.build import build_train_loader
from soma_det.data.datasets.catalog import CATALOG
from soma_det.evaluation.detections import load_ground_truth

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs" / "datasets").glob("*.yaml"))
DAY_TO_NIGHT = ROOT / "configs" / "datasets" / "bdd100k_day_to_night.yaml"
CLASSES = CATALOG["bdd100k_day_val"].classes
ON_CPU = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_registers_before_its_data_are_there_and_says_how_to_prepare_them(path):
    cfg = setup_cfg(str(path), ON_CPU)
    register_from_config(cfg)  # checks the number and order of the classes, too
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    prepared = [name for name in names if name in CATALOG and CATALOG[name].reader]
    assert prepared
    for name in prepared:
        with pytest.raises(FileNotFoundError, match=rf"python tools/prepare_data.py {name} --root .* --output"):
            check_data_exists([name])
        with pytest.raises(FileNotFoundError, match="prepare_data.py"):
            DatasetCatalog.get(name)


def test_a_prepared_json_is_found_by_its_name_with_classes_and_domain(tmp_path):
    root = write_bdd100k(tmp_path / "bdd100k")
    for name in ("bdd100k_day_val", "bdd100k_night_val"):
        prepare(name, root)
    cfg = setup_cfg(str(DAY_TO_NIGHT), [*ON_CPU, "DATASETS.TRAIN", "()"])
    register_from_config(cfg)
    check_data_exists(cfg.DATASETS.TEST)
    records = DatasetCatalog.get("bdd100k_night_val")
    assert [len(record["annotations"]) for record in records] == [0, 1, 1]
    assert all(Path(record["file_name"]).is_file() for record in records)
    metadata = MetadataCatalog.get("bdd100k_night_val")
    assert (metadata.domain, tuple(metadata.thing_classes)) == ("night", CATALOG["bdd100k_night_val"].classes)


def test_crowds_are_not_trained_on_and_do_not_count_in_tests(tmp_path):
    prepare("bdd100k_day_val", write_bdd100k(tmp_path / "bdd100k"))
    sizes = ["INPUT.AUGMENTATION.CROP_SIZE", "[48, 64]", "INPUT.AUGMENTATION.SCALE_RANGE", "[1.0, 1.0]"]
    names = ["DATASETS.TRAIN", "('bdd100k_day_val',)", "DATASETS.TEST", "()", "DATASETS.SOURCE_TEST", ""]
    loader = ["SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    cfg = setup_cfg(str(DAY_TO_NIGHT), [*ON_CPU, *sizes, *names, *loader])
    register_from_config(cfg)
    (sample,) = next(iter(build_train_loader(cfg)))
    trained = [CLASSES[number] for number in sample["instances"].gt_classes]
    truth = load_ground_truth("bdd100k_day_val")
    assert trained == ["pedestrian", "motorcycle"]
    assert {name for name, count in truth.counts().items() if count} == set(trained) and truth.ignored.sum() == 3


def test_a_json_that_was_prepared_after_registering_is_found_the_next_time(tmp_path):
    cfg = setup_cfg(str(DAY_TO_NIGHT), ON_CPU)
    register_from_config(cfg)
    prepare("bdd100k_night_val", write_bdd100k(tmp_path / "bdd100k"))
    register_from_config(cfg)
    assert len(DatasetCatalog.get("bdd100k_night_val")) == 3


def test_other_classes_than_the_configs_are_an_error_that_names_the_data_set(tmp_path):
    prepare("bdd100k_night_val", write_bdd100k(tmp_path / "bdd100k"), "--classes", "cityscapes")
    with pytest.raises(ValueError, match="data set 'bdd100k_night_val' has 8 classes"):
        register_from_config(setup_cfg(str(DAY_TO_NIGHT), ON_CPU))


def test_an_own_entry_of_coco_json_goes_before_the_catalog(tmp_path):
    prepare("acdc_fog_val", write_acdc(tmp_path / "acdc"))
    entry = ["cityscapes_val", str(tmp_path / "acdc_fog_val.json"), str(tmp_path / "acdc"), "own"]
    path = str(ROOT / "configs" / "datasets" / "cityscapes_to_foggy.yaml")
    cfg = setup_cfg(path, [*ON_CPU, "DATASETS.COCO_JSON", str([entry])])
    register_from_config(cfg)
    assert MetadataCatalog.get("cityscapes_val").domain == "own"


def test_images_that_moved_away_and_a_foreign_json_are_errors_with_the_remedy(tmp_path):
    cfg = setup_cfg(str(DAY_TO_NIGHT), ON_CPU)
    root = write_bdd100k(tmp_path / "bdd100k")
    prepare("bdd100k_night_val", root)
    root.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="bdd100k, which does not exist: prepare it again"):
        register_from_config(cfg)
    (tmp_path / "bdd100k_night_val.json").write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match=r"does not say where its images are.*DATASETS\.COCO_JSON"):
        register_from_config(cfg)


def test_folder_and_json_can_move_together(tmp_path):
    prepare("bdd100k_night_val", write_bdd100k(tmp_path / "a" / "bdd100k"), "--output", str(tmp_path / "a" / "x.json"))
    for path in (tmp_path / "a").iterdir():
        path.rename(tmp_path / path.name.replace("x.json", "bdd100k_night_val.json"))
    register_from_config(setup_cfg(str(DAY_TO_NIGHT), ON_CPU))
    assert all(Path(record["file_name"]).is_file() for record in DatasetCatalog.get("bdd100k_night_val"))


def test_a_misspelled_name_is_an_error_with_the_closest_of_the_catalog():
    cfg = setup_cfg(str(DAY_TO_NIGHT), [*ON_CPU, "DATASETS.TRAIN", "('bdd100k_dya_train',)"])
    with pytest.raises(ValueError, match="'bdd100k_dya_train'.*Did you mean 'bdd100k_day_train'"):
        register_from_config(cfg)


def test_the_data_page_has_every_name_with_its_homepage_and_figure():
    page = (ROOT / "datasets" / "README.md").read_text()
    for name, entry in CATALOG.items():
        written = name if name in page else name.rpartition("_")[0]  # "bdd100k_day ..., each with _train and _val"
        assert written in page or not entry.reader, name
        assert entry.source.homepage in page, name
        assert entry.published is None or entry.published.score in page, name
