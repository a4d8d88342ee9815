"""Writes tiny copies of the field's data sets, each in its real format, for tests. Images are 64 x 48 pixels."""

import json
from pathlib import Path

import prepare_data
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from voc_fixtures import write_image

WIDTH, HEIGHT = 64, 48


@pytest.fixture(autouse=True)
def clean_catalogs(tmp_path, monkeypatch):
    """For each test of a module that imports it: an empty folder of prepared data, and nothing registered after it."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def prepare(name: str, root: Path, *options: str) -> None:
    """Run tools/prepare_data.py."""
    prepare_data.main(prepare_data.parse_args([name, "--root", str(root), *options]))


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    """A polygon over the pixels x0 to x1 and y0 to y1, both inclusive."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def write_cityscapes(root: Path) -> Path:
    """Two images of split val: one with every trap of the polygons, and one without objects."""
    objects = [
        {"label": "road", "polygon": rectangle(0, 0, 63, 47)},
        {"label": "car", "polygon": rectangle(10, 10, 29, 19)},
        {"label": "car", "polygon": rectangle(5, 40, 9, 44), "deleted": 1},
        {"label": "license plate", "polygon": rectangle(10, 10, 12, 19)},  # in front of the car, and not drawn
        {"label": "truck", "polygon": rectangle(20, 10, 29, 19)},  # hides half of the car
        {"label": "person", "polygon": rectangle(22, 12, 24, 14)},
        {"label": "rider", "polygon": rectangle(21, 11, 25, 15)},  # hides the person
        {"label": "persongroup", "polygon": rectangle(40, 10, 50, 20)},
        {"label": "caravan", "polygon": rectangle(55, 30, 60, 40)},
    ]
    for stem, listed in (("aachen_000001_000019", objects), ("aachen_000002_000019", objects[:1])):
        write_json(
            root / f"gtFine/val/aachen/{stem}_gtFine_polygons.json",
            {"imgWidth": WIDTH, "imgHeight": HEIGHT, "objects": listed},
        )
        write_image(root / f"leftImg8bit/val/aachen/{stem}_leftImg8bit.png")
        for beta in ("0.005", "0.01", "0.02"):
            write_image(root / f"leftImg8bit_foggy/val/aachen/{stem}_leftImg8bit_foggy_beta_{beta}.png")
        for pattern in (1, 2):
            variant = f"rain_alpha_0.01_beta_0.005_dropsize_0.01_pattern_{pattern}"
            folder = root / "leftImg8bit_trainval_rain/leftImg8bit_rain/val/aachen"
            write_image(folder / f"{stem}_leftImg8bit_{variant}.png")
    return root


def frame(name: str, weather: str, timeofday: str, labels: list[dict] | None) -> dict:
    attributes = {"weather": weather, "scene": "city street", "timeofday": timeofday}
    return {"name": name, "attributes": attributes, "timestamp": 10000, "labels": labels}


def label(category: str, box: tuple[float, float, float, float] | None, **attributes: bool) -> dict:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box)) if box else None
    shape = {"box2d": corners} if corners else {"poly2d": [{"vertices": [[0, 0], [5, 5]], "types": "LL"}]}
    return {"id": "0", "category": category, "attributes": {"occluded": False, **attributes}, **shape}


def write_bdd100k(root: Path) -> Path:
    """Five frames of split val: one by day, three at night, of which one in rain; labels can be null or absent."""
    box = (10.0, 5.0, 29.0, 19.0)
    by_day = [
        label("pedestrian", box),
        label("car", box, crowd=True),
        label("other vehicle", box),
        label("trailer", box),
        label("motor", box),
        label("lane/single white", None),
    ]
    frames = [
        frame("b.jpg", "clear", "daytime", by_day),
        frame("a.jpg", "clear", "night", None),
        frame("c.jpg", "clear", "night", [label("traffic sign", box)]),
        frame("d.jpg", "rainy", "night", [label("bus", box)]),
    ]
    frames.append(frame("e.jpg", "undefined", "undefined", None))
    del frames[-1]["labels"]
    write_json(root / "labels/det_20/det_val.json", frames)
    for entry in frames:
        write_image(root / f"images/100k/val/{entry['name']}")
    return root


def write_acdc(root: Path) -> Path:
    """The fog json of val: it lists an image of night too, and holds the boxes of an image that it does not list."""
    files = {
        7: "fog/val/GOPR0475/GOPR0475_frame_000001_rgb_anon.png",
        8: "night/val/GOPR0351/GOPR0351_frame_000001_rgb_anon.png",
        9: "fog/val/GOPR0475/GOPR0475_frame_000002_rgb_anon.png",
    }
    boxes = [(7, 26, 0), (7, 33, 1), (8, 24, 0), (99, 24, 0)]
    content = {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in files.items()],
        "categories": [{"id": 24, "name": "person"}, {"id": 26, "name": "car"}, {"id": 33, "name": "bicycle"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": of, "bbox": [10, 5, 20, 15], "area": 300, "iscrowd": crowd}
            for n, (image, of, crowd) in enumerate(boxes)
        ],
    }
    path = "gt_detection_trainval/gt_detection/fog/instancesonly_fog_val_gt_detection.json"
    write_json(root / path, content)
    for name in files.values():
        write_image(root / "rgb_anon_trainvaltest/rgb_anon" / name)
    return root


def write_exdark(root: Path) -> Path:
    """Three images, one for each split; the test image has a box to ignore, and its file a suffix in capitals."""
    rows = [("2015_00001.png", 1, 1), ("2015_00002.jpg", 10, 2), ("2015_00003.jpg", 11, 3)]
    lines = ["Name | Class | Light | In/Out | Train/Val/Test"]
    lines += [f"{name} {number} 2 1 {split}" for name, number, split in rows]
    (root / "ExDark").mkdir(parents=True)
    (root / "imageclasslist.txt").write_text("\n".join(lines) + "\n")
    boxes = {
        "Bicycle": "Bicycle 10 5 20 15 0 0 0 0 0 0 0\n",
        "Motorbike": "",
        "People": "People 10 5 20 15 0 0 0 0 0 0 0\nCar 30 5 20 15 0 0 0 0 0 1 0\n",
    }
    for (name, _, _), (folder, text) in zip(rows, boxes.items()):
        written = name.replace("3.jpg", "3.JPG")
        write_image(root / "ExDark" / folder / written)
        path = root / "ExDark_Annno" / folder / f"{name}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(f"% bbGt version=3\n{text}")
    return root


def write_coco(root: Path) -> Path:
    """Split val of three images, the last without boxes; ids of categories have gaps, as in COCO."""
    content = {
        "images": [
            {"id": n, "file_name": f"00000000000{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in (139, 285, 632)
        ],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 67, "name": "dining table", "supercategory": "furniture"},
            {"id": 25, "name": "giraffe", "supercategory": "animal"},
        ],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 1, "bbox": [10.5, 5, 20, 15], "area": 100, "iscrowd": 1},
            {"id": 2, "image_id": 139, "category_id": 67, "bbox": [50, 40, 20, 15], "area": 100, "iscrowd": 0},
            {"id": 3, "image_id": 285, "category_id": 25, "bbox": [10, 5, 20, 15], "area": 100, "iscrowd": 0},
        ],
    }
    write_json(root / "annotations/instances_val2017.json", content)
    for entry in content["images"]:
        write_image(root / "val2017" / entry["file_name"])
    return root
