"""The training stream: exactly resumable, robust against broken images, and harmless to the data."""

import itertools
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image
from training import tiny_cfg, write_data
from voc_fixtures import CLASSES, hash_tree, real_weather_root, write_annotation, write_domain, write_image

import soma_det  # noqa: F401
from soma_det.config import add_soma_config
from soma_det.data import dataset_mapper, register_from_config
from soma_det.data.build import PositionSampler, TrainLoader, build_test_loader, build_train_loader
from soma_det.data.dataset_mapper import WeatherMapper
from soma_det.data.datasets.diverse_weather import load_voc_domain
from soma_det.data.transforms.augmentation import build_train_augmentation
from soma_det.utils.images import UnreadableImageError

IDS = ["a", "b", "c", "d", "e"]
SPOIL = {
    "missing": Path.unlink,
    "no image": lambda path: path.write_bytes(b"?"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


@pytest.fixture
def devkit(tmp_path):
    return write_domain(tmp_path, "rainy", {"train": IDS})


@pytest.fixture
def records(devkit):
    return load_voc_domain(devkit.parents[1], "rainy", "train", CLASSES)


@pytest.fixture
def cfg(devkit):
    cfg = get_cfg()
    add_soma_config(cfg)
    cfg.DATASETS.WEATHER.PREFIX = "loader_test"
    cfg.DATASETS.WEATHER.ROOT = str(devkit.parents[1])
    cfg.DATASETS.WEATHER.DOMAINS = ["rainy"]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("loader_test_rainy_train",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.AUGMENTATION.CROP_SIZE = [32, 40]
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 24, 40
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 3
    before = set(DatasetCatalog)
    register_from_config(cfg)
    yield cfg
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train_mapper(**change):
    recipe = dict(scale_range=(0.5, 2.0), crop_size=(32, 40), photometric=True, flip=True)
    augmentations = build_train_augmentation(**{**recipe, **change})
    return WeatherMapper(is_train=True, augmentations=augmentations, image_format="RGB")


def train_loader(records, *, start=0, workers=0, seed=3, batch=2):
    loader = TrainLoader(records, train_mapper(), total_batch_size=batch, seed=seed, num_workers=workers)
    loader.start_iteration = start
    return loader


def take(loader, count):
    """The first batches, flattened to comparable values."""
    return [
        (s["image_id"], s["image"].numpy().tobytes(), s["instances"].gt_boxes.tensor.tolist())
        for batch in itertools.islice(loader, count)
        for s in batch
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumed_at_any_iteration_equals_the_uninterrupted_one(records, workers):
    whole = take(train_loader(records), 7)  # of 14 images: nearly three epochs of five
    for start in (1, 4):
        assert take(train_loader(records, start=start, workers=workers), 7 - start) == whole[2 * start :]


def test_workers_do_not_change_the_stream(records):
    assert take(train_loader(records, workers=2), 4) == take(train_loader(records), 4)


def test_an_image_is_augmented_differently_in_every_epoch(records):
    stream = take(train_loader(records), 5)  # two epochs
    assert len({(image_id, image) for image_id, image, _ in stream}) == 10


def test_another_seed_gives_another_stream(records):
    assert take(train_loader(records), 3) != take(train_loader(records, seed=4), 3)


def test_every_epoch_holds_each_image_once_in_another_order():
    indices = [index for _, index in itertools.islice(PositionSampler(50, seed=0), 150)]
    epochs = [indices[:50], indices[50:100], indices[100:]]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_sampler_that_starts_later_yields_the_rest_of_the_same_stream():
    whole = list(itertools.islice(PositionSampler(5, seed=1), 23))
    assert list(itertools.islice(PositionSampler(5, seed=1, start=9), 14)) == whole[9:]


def test_processes_share_every_iteration_without_overlap(records, monkeypatch):
    alone = [image_id for image_id, _, _ in take(train_loader(records, batch=4, start=1), 3)]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append([image_id for image_id, _, _ in take(train_loader(records, batch=4, start=1), 3)])
    assert [image_id for pair in zip(*shares) for image_id in pair] == alone


@pytest.mark.parametrize("batch", [0, 3])
def test_a_batch_that_processes_cannot_share_is_an_error(records, monkeypatch, batch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=f"SOLVER.IMS_PER_BATCH is {batch}.*multiple of 2"):
        train_loader(records, batch=batch)


def test_nothing_is_read_before_the_first_batch_is_asked_for(records):
    calls = []
    loader = TrainLoader(records, lambda record: calls.append(record) or record, total_batch_size=1, seed=0)
    batches = iter(loader)
    assert not calls
    loader.start_iteration = 3  # as the trainer does after it made its iterator
    (sample,) = next(batches)
    assert sample["image_id"] == take(train_loader(records, seed=0, start=3, batch=1), 1)[0][0]


def test_the_stream_leaves_the_random_numbers_of_the_process_alone(records):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    seed()
    expected = draw()
    seed()
    take(train_loader(records), 2)
    assert draw() == expected


def test_boxes_stay_inside_the_image_and_are_not_empty(records):
    mapper = train_mapper(scale_range=(0.1, 4.0))
    for record in records * 20:
        boxes = mapper(record)["instances"].gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= torch.tensor([40, 32, 40, 32])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_boxes_that_the_crop_cuts_away_are_gone_and_an_image_may_have_none_left(records):
    # Scaled by 8 and cropped to an eighth, most crops show neither object.
    mapper = train_mapper(scale_range=(8.0, 8.0))
    counts = {len(mapper(record)["instances"]) for record in records * 20}
    assert {0, 1} <= counts <= {0, 1, 2}
    empty = next(i for i in (mapper(record)["instances"] for record in records * 20) if len(i) == 0)
    assert empty.gt_boxes.tensor.shape == (0, 4) and empty.gt_classes.shape == (0,)


def test_a_training_sample_holds_what_a_detector_expects(records):
    (sample,) = next(iter(train_loader(records, batch=1)))
    assert set(sample) == {"image", "instances", "file_name", "image_id", "height", "width"}
    assert sample["image"].shape == (3, 32, 40) and sample["image"].dtype == torch.float32
    assert (sample["height"], sample["width"]) == (48, 64)
    assert sample["instances"].image_size == (32, 40)


def test_images_are_rgb(records):
    Image.new("RGB", (64, 48), (250, 0, 0)).save(records[0]["file_name"])
    image = WeatherMapper(is_train=False, augmentations=[], image_format="RGB")(records[0])["image"]
    assert image[0].float().mean() > 200 > 50 > image[2].float().mean()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("spoil", SPOIL)
def test_an_unreadable_image_is_replaced_by_the_next_counted_and_named(records, caplog, workers, spoil):
    path = Path(records[2]["file_name"])
    SPOIL[spoil](path)
    loader = train_loader(records, batch=5, workers=workers)
    with caplog.at_level(logging.WARNING, logger="soma_det.data.build"):
        batches = list(itertools.islice(loader, 2))
    for batch in batches:
        assert sorted(sample["image_id"] for sample in batch) == ["a", "b", "d", "d", "e"]
        assert all("skipped_files" not in sample for sample in batch)
    assert loader.skipped == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and str(path) in warnings[0] and "2 left out so far" in warnings[1]


def test_when_no_image_can_be_read_the_stream_stops_with_an_error(records):
    for record in records:
        SPOIL["no image"](Path(record["file_name"]))
    with pytest.raises(UnreadableImageError, match=r"20 images in a row are unreadable.*[a-e]\.jpg"):
        next(iter(train_loader(records)))


def test_an_unreadable_image_stops_an_evaluation_with_an_error_that_names_it(cfg, records):
    loader = build_test_loader(cfg, "loader_test_rainy_train")
    SPOIL["cut short"](Path(records[3]["file_name"]))
    with pytest.raises(UnreadableImageError, match="d.jpg"):
        list(loader)


def test_an_image_of_another_size_than_the_record_says_is_an_error_that_names_it(records):
    write_image(Path(records[0]["file_name"]), width=32, height=48)
    with pytest.raises(SizeMismatchError, match="a.jpg"):
        train_mapper()(records[0])


def test_an_evaluation_sees_every_image_once_and_no_annotations(cfg):
    samples = [sample for batch in build_test_loader(cfg, "loader_test_rainy_train") for sample in batch]
    assert [sample["image_id"] for sample in samples] == IDS
    assert all(sample["image"].shape == (3, 24, 32) and "annotations" not in sample for sample in samples)


def test_a_config_builds_a_loader_that_resumes(cfg):
    whole = take(build_train_loader(cfg), 4)
    resumed = build_train_loader(cfg)
    resumed.start_iteration = 2
    assert take(resumed, 2) == whole[4:]


def test_a_negative_seed_is_drawn_and_logged(cfg, caplog):
    cfg.SEED = -1
    with caplog.at_level(logging.INFO, logger="soma_det.data.build"):
        loader = build_train_loader(cfg)
    assert loader.seed >= 0 and f"set SEED to {loader.seed}" in caplog.text


def test_images_without_annotations_are_left_out_as_the_config_says(cfg, devkit):
    write_annotation(devkit / "Annotations" / "b.xml", [])
    assert len(build_train_loader(cfg).dataset) == 4
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(build_train_loader(cfg).dataset) == 5


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_with_images_without_annotations_has_finite_losses_and_gradients(tmp_path, count):
    cfg = tiny_cfg(write_data(tmp_path), tmp_path / "out")
    records = DatasetCatalog.get("tiny_daytime_clear_train")[:2]
    for record in records[:count]:
        record["annotations"] = []
    (batch,) = itertools.islice(TrainLoader(records, WeatherMapper(cfg), total_batch_size=2, seed=0), 1)
    assert sum(len(sample["instances"]) == 0 for sample in batch) == count
    model = build_model(cfg)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_missing_test_set_stops_a_training_before_it_starts(cfg):
    cfg.DATASETS.TEST = ("loader_test_rainy_test",)
    with pytest.raises(FileNotFoundError, match="test.txt"):
        build_train_loader(cfg)


def test_a_training_without_data_sets_is_an_error(cfg):
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        build_train_loader(cfg)


def test_an_unknown_flip_is_an_error(cfg):
    cfg.INPUT.RANDOM_FLIP = "vertical"
    with pytest.raises(ValueError, match="RANDOM_FLIP is 'vertical'"):
        build_train_loader(cfg)


def test_training_and_evaluating_leave_every_file_as_it_was(cfg, devkit):
    before = hash_tree(devkit)
    list(itertools.islice(build_train_loader(cfg), 3))
    list(build_test_loader(cfg, "loader_test_rainy_train"))
    assert hash_tree(devkit) == before


@pytest.mark.skipif(real_weather_root() is None, reason="needs $SOMA_DET_REAL_WEATHER")
def test_real_photographs_stream_in_training():
    records = load_voc_domain(real_weather_root(), "daytime_clear", "test", CLASSES)
    stream = take(train_loader(records), 4)
    assert len(stream) == 8 and sum(len(boxes) for _, _, boxes in stream) > 0


def test_masks_follow_their_boxes_through_resize_crop_and_flip(tmp_path):
    pytest.importorskip("shapely")
    data = write_data(tmp_path / "data")
    cfg = tiny_cfg(data, tmp_path, MODEL__MASK_ON=True)
    (record, *_) = [r for r in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]) if r["annotations"]]
    for annotation in record["annotations"]:
        x0, y0, x1, y1 = annotation["bbox"]
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    mapper = WeatherMapper(cfg, is_train=True)
    seen = 0
    for _ in range(10):
        instances = mapper(record)["instances"]
        seen += len(instances)
        np.testing.assert_allclose(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor, atol=1e-3)
    assert seen > 5


def test_without_shapely_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_mapper, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"soma_det\[masks\]"):
        WeatherMapper(tiny_cfg(write_data(tmp_path / "data"), tmp_path, MODEL__MASK_ON=True), is_train=True)
