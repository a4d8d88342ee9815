"""The field's data sets by name. A config that names NAME finds ``$DETECTRON2_DATASETS/NAME.json``.

`tools/prepare_data.py NAME` writes that file. Published figures and counts: each entry says where they were read.
"""

from collections.abc import Iterator

from soma_det.config.defaults import CLASSES as DIVERSE_WEATHER
from soma_det.data.datasets import sources
from soma_det.data.datasets.class_lists import CLASS_LISTS
from soma_det.data.datasets.sources import DataSet, Published

DINO_TEACHER = "TRAILab/DINO_Teacher, README"
TLLIB = "thuml/Transfer-Learning-Library, README of object detection"
FROZEN_L = "trained on Cityscapes, frozen DINOv2 ViT-L"
R101 = "Faster R-CNN R101, source only"


def _cityscapes() -> Iterator[DataSet]:
    clear = Published("61.3", FROZEN_L, "val", DINO_TEACHER)
    foggy = Published("33.3", f"{R101} (Cityscapes)", "val, beta 0.02, without the images that have no object", TLLIB)
    car = Published("44.4", f"{R101} (Sim10k)", "val, car", TLLIB)
    eight, source = CLASS_LISTS["cityscapes"], sources.CITYSCAPES
    fog = {"images": ("leftImg8bit_foggy",), "beta": ("0.02",)}
    rain = {"images": ("leftImg8bit_trainval_rain/leftImg8bit_rain", "leftImg8bit_rain")}
    for split, count, rainy in (("train", 2975, 9432), ("val", 500, 1188)):
        of, val = {"split": split}, split == "val"
        yield DataSet(f"cityscapes_{split}", source, "cityscapes", eight, "clear", of, clear if val else None, count)
        yield DataSet(
            f"cityscapes_foggy_{split}", source, "cityscapes", eight, "fog", of | fog, foggy if val else None, count
        )
        yield DataSet(
            f"cityscapes_rainy_{split}", source, "cityscapes", eight, "rain", of | rain, None, rainy, {}, True
        )
    yield DataSet("cityscapes_car_val", source, "cityscapes", ("car",), "real", {"split": "val"}, car, 500)


def _bdd100k() -> Iterator[DataSet]:
    conditions: dict[str, dict[str, tuple[str, ...]]] = {
        "": {},
        "day_": {"timeofday": ("daytime",)},
        "night_": {"timeofday": ("night",)},
        **{f"{weather}_": {"weather": (weather,)} for weather in ("clear", "rainy", "snowy", "foggy")},
    }
    day = Published("45.7", FROZEN_L, "val, daytime, Cityscapes' classes without train", DINO_TEACHER)
    counts = {"val": 10000, "night_val": 3929, "day_train": 36728, "night_train": 27971}
    for key, options, split in ((c + s, o, s) for s in ("train", "val") for c, o in conditions.items()):
        figure, domain = day if key == "day_val" else None, key.removesuffix(split).rstrip("_") or "all"
        of = {"split": split, **options}
        classes, count = CLASS_LISTS["bdd100k"], counts.get(key)
        cited = key != "val"
        yield DataSet(f"bdd100k_{key}", sources.BDD, "scalabel", classes, domain, of, figure, count, {}, cited)


def _acdc() -> Iterator[DataSet]:
    counts = {"train": dict.fromkeys(("fog", "night", "rain", "snow"), 400)}
    counts["val"] = {"fog": 100, "night": 106, "rain": 100, "snow": 100}
    for domain, split, count in ((domain, split, n) for split, of in counts.items() for domain, n in of.items()):
        path = f"gt_detection/{domain}/instancesonly_{domain}_{split}_gt_detection.json"
        options = {
            "labels": (f"gt_detection_trainval/{path}", path),
            "images": ("rgb_anon_trainvaltest/rgb_anon", "rgb_anon"),
            "condition": domain,
        }
        classes = CLASS_LISTS["cityscapes"]
        yield DataSet(f"acdc_{domain}_{split}", sources.ACDC, "coco", classes, domain, options, None, count)


def _photos_in_bad_light() -> Iterator[DataSet]:
    for folder in ("Fog", "Rain", "Snow", "Sand"):
        domain = folder.lower()
        yield DataSet(f"dawn_{domain}", sources.DAWN, "dawn", DIVERSE_WEATHER, domain, {"folder": folder})
    rtts = {"devkits": (("RTTS", "test"),)}
    yield DataSet("rtts_test", sources.RTTS, "voc", DIVERSE_WEATHER, "haze", rtts, None, 4322, {}, True)
    for split, count in (("train", 3000), ("val", 1800), ("test", 2563)):
        classes, of = CLASS_LISTS["exdark"], {"split": split}
        yield DataSet(f"exdark_{split}", sources.EXDARK, "exdark", classes, "dark", of, None, count, {}, True)


def _voc() -> Iterator[DataSet]:
    sim10k = {"devkits": (("VOC2012", "trainval10k"),)}
    cars = {"car": 58701}
    yield DataSet("sim10k_train", sources.SIM10K, "voc", ("car",), "simulated", sim10k, None, 10000, cars, True)
    trainval = {"devkits": (("VOC2007", "trainval"), ("VOC2012", "trainval"))}
    test = {"devkits": (("VOC2007", "test"),), "ignore_difficult": True}
    clean = Published("80.5", "Faster R-CNN R50", "test 2007", "bethgelab/robust-detection-benchmark, README")
    for prefix, of in (("voc", "voc"), ("voc_six", "six")):
        figure = clean if of == "voc" else None
        classes = CLASS_LISTS[of]
        yield DataSet(f"{prefix}_trainval", sources.VOC, "voc", classes, "photo", trainval, None, 5011 + 11540)
        yield DataSet(f"{prefix}_test", sources.VOC, "voc", classes, "photo", test, figure, 4952)


def _art() -> Iterator[DataSet]:
    both = {"devkits": (("clipart", "train"), ("clipart", "test")), "ignore_difficult": True}
    all_clipart = Published("29.3", f"{R101} (VOC)", "train and test", TLLIB)
    twenty = CLASS_LISTS["voc"]
    yield DataSet("clipart_all", sources.CLIPART, "voc", twenty, "clipart", both, all_clipart, 1000)
    kits = (
        (sources.CLIPART, "voc", "", 500),
        (sources.WATERCOLOR, "six", "45.9", 1000),
        (sources.COMIC, "six", "25.5", 1000),
    )
    for (source, of, score, count), split in ((kit, split) for kit in kits for split in ("train", "test")):
        style, test = source.root.rsplit("/", 1)[-1], split == "test"
        options = {"devkits": ((style, split),), "ignore_difficult": test}
        published = Published(score, f"{R101} (VOC)", "test", TLLIB) if test and score else None
        yield DataSet(f"{style}_{split}", source, "voc", CLASS_LISTS[of], style, options, published, count)


def _coco() -> Iterator[DataSet]:
    clean = Published("36.3", "Faster R-CNN R50-FPN", "val2017", "mmdetection, robustness_benchmarking.md", "AP")
    for split, count in (("train", 118287), ("val", 5000)):
        options = {"labels": (f"annotations/instances_{split}2017.json",), "images": (f"{split}2017",)}
        figure = clean if split == "val" else None
        yield DataSet(f"coco_{split}", sources.COCO, "coco", CLASS_LISTS["coco"], "photo", options, figure, count)
        exdark = CLASS_LISTS["exdark"]
        yield DataSet(f"coco_exdark_{split}", sources.COCO, "coco", exdark, "photo", options, None, count)


def _diverse_weather() -> Iterator[DataSet]:
    counts = {  # of the official lists, in the order of the classes
        "daytime_clear_test": (1738, 1046, 95339, 537, 12309, 787, 5029),
        "dusk_rainy_train": (820, 322, 34240, 110, 5144, 169, 2235),
        "daytime_foggy_train": (554, 4920, 33392, 911, 21530, 2363, 736),
    }
    scores = {
        "daytime_clear_test": "69.4",
        "night_sunny_train": "59.3",
        "dusk_rainy_train": "59.3",
        "night_rainy_train": "47.6",
        "daytime_foggy_train": "51.0",
    }
    for key, score in scores.items():
        domain, _, split = key.rpartition("_")
        detector, metric = "SoMA, DINOv2 ViT-L, Co-DINO", "AP50, VOC 11 points"
        figure = Published(score, detector, f"{split}.txt", "ysj9909/SoMA, README", metric)
        boxes = dict(zip(DIVERSE_WEATHER, counts.get(key, ())))
        yield DataSet(
            f"diverse_weather_{key}", sources.DIVERSE_WEATHER, "", DIVERSE_WEATHER, domain, {}, figure, None, boxes
        )


PARTS = (_cityscapes, _bdd100k, _acdc, _photos_in_bad_light, _voc, _art, _coco, _diverse_weather)
CATALOG: dict[str, DataSet] = {entry.name: entry for part in PARTS for entry in part()}
