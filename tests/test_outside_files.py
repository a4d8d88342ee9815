"""Files from outside: what is hostile, broken or unusual is read alike everywhere, or refused with a message."""

import io
import json
import os
import pickle
import resource
import time
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import convert_weights
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from voc_fixtures import object_xml, write_domain, write_image, write_list

from soma_det.checkpoint.pickled import RefusedPickleError, read_model_zoo
from soma_det.config import setup_cfg
from soma_det.data.convert.records import Report, measure
from soma_det.data.convert.voc import read_voc
from soma_det.data.dataset_mapper import WeatherMapper
from soma_det.data.datasets.coco_json import read_coco_json
from soma_det.data.datasets.diverse_weather import load_voc_domain
from soma_det.data.datasets.voc_xml import BrokenAnnotationError, read_objects
from soma_det.detector import to_rgb
from soma_det.utils.images import UnreadableImageError, image_size

MAPPER = WeatherMapper(is_train=False, augmentations=[T.NoOpTransform()], image_format="RGB")
SQUARES = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def mapped(path):
    """The image as a model in evaluation gets it, as (H, W, 3)."""
    return MAPPER({"file_name": str(path), "image_id": 1})["image"].permute(1, 2, 0).numpy()


# Annotations in XML

BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
HOSTILE_XML = {
    "a bomb": f'<!DOCTYPE a [<!ENTITY e0 "x">{BOMB}]><annotation><object><name>&e9;</name></object></annotation>',
    "a long entity often": f'<!DOCTYPE a [<!ENTITY e "{"x" * 10**5}">]><annotation>{"&e;" * 10**4}</annotation>',
    "a file": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><name>&e;</name></annotation>',
    "the network": '<!DOCTYPE a [<!ENTITY % e SYSTEM "http://127.0.0.1:9/e.dtd">%e;]><annotation/>',
    "cut short": "<annotation><object>",
    "another root": "<html/>",
    "no encoding": '<?xml version="1.0" encoding="x-unknown"?><annotation/>',
    "nothing": "",
}


@pytest.mark.parametrize("kind", HOSTILE_XML)
def test_hostile_xml_is_a_broken_annotation_in_less_than_a_second(tmp_path, kind):
    path = tmp_path / "a.xml"
    path.write_text(HOSTILE_XML[kind])
    start = time.perf_counter()
    with pytest.raises(BrokenAnnotationError, match=r"a\.xml is not"):
        read_objects(path, Counter())
    assert time.perf_counter() - start < 1


def test_tags_nested_a_hundred_thousand_deep_are_read(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{'<part>' * 10**5}{'</part>' * 10**5}</annotation>")
    assert read_objects(path, Counter()) == []


@pytest.mark.parametrize("count", [10**4, pytest.param(10**6, marks=pytest.mark.slow)])
def test_so_many_boxes_in_one_xml_are_read(tmp_path, count):
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{object_xml('car', (1, 2, 3, 4)) * count}</annotation>")
    assert len(read_objects(path, Counter())) == count


# Paths


@pytest.mark.parametrize("image_id", ["../../../outside/x", "{tmp}/outside/x"])
def test_a_list_of_voc_reaches_no_image_outside_its_folder(tmp_path, image_id):
    write_image(tmp_path / "outside" / "x.jpg")
    image_id = image_id.format(tmp=tmp_path)
    write_domain(tmp_path / "data", "fog", {"test": ["a"]})
    write_list(tmp_path / "data/fog/VOC2007", "test", ["a", image_id])
    with pytest.raises(OSError, match="1 without an image"):
        load_voc_domain(tmp_path / "data", "fog", "test", ["car"])
    report = Report()
    images = list(read_voc(tmp_path / "data/fog", report, devkits=[("VOC2007", "test")]))
    assert [image.file_name for image in images] == ["VOC2007/JPEGImages/a.jpg"] and len(report.skipped) == 1


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg", "a\0.jpg", ""])
def test_a_path_out_of_the_data_root_is_refused_in_a_json_and_left_out_by_the_converters(tmp_path, name):
    with pytest.raises(ValueError, match=r"images\[0\] has the file_name .* a path inside the folder"):
        read_coco_json(write_coco(tmp_path, lambda content: content["images"][0].update(file_name=name)))
    assert measure(tmp_path, name, report := Report()) is None
    assert report.skipped == {"with a path that leaves the folder of the data set": [name]}


def test_links_inside_the_root_are_the_users_own_and_are_followed(tmp_path):
    write_image(tmp_path / "disk2" / "x.png")
    (tmp_path / "images").symlink_to(tmp_path / "disk2")
    assert measure(tmp_path, "images/x.png", Report()) == (64, 48)


@pytest.mark.parametrize("kind", ["loop", "pipe", "folder", "missing"])
def test_what_is_no_regular_file_is_an_unreadable_image_at_once(tmp_path, kind):
    path = tmp_path / "x.jpg"
    if kind == "loop":
        (tmp_path / "y.jpg").symlink_to(path)
        path.symlink_to(tmp_path / "y.jpg")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    for read in (mapped, image_size):
        with pytest.raises(UnreadableImageError, match=r"x\.jpg: there is no such file"):
            read(path)


def test_a_loop_of_folders_does_not_hang_the_listing_of_a_devkit(tmp_path):
    devkit = write_domain(tmp_path, "fog", {"test": ["a"]})
    (devkit / "JPEGImages" / "again").symlink_to(devkit / "JPEGImages")
    assert len(load_voc_domain(tmp_path, "fog", "test", ["car"])) == 1


# Images

GRAY, RAMP = SQUARES[:, :, 0], np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
ALPHA = np.dstack([SQUARES, np.zeros((6, 8), np.uint8)])
GRAY_ALPHA = Image.fromarray(ALPHA).convert("LA")
PALETTE = Image.fromarray(SQUARES).quantize(8)


def gray(values):
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


UNUSUAL = {  # name of the file: image, and the pixels that it stands for
    "rgb.png": (Image.fromarray(SQUARES), SQUARES),
    "gray.png": (Image.fromarray(GRAY), gray(GRAY)),
    "one_bit.png": (Image.fromarray(GRAY > 127), gray((GRAY > 127) * 255)),
    "transparent.png": (Image.fromarray(ALPHA), SQUARES),
    "gray_alpha.png": (GRAY_ALPHA, gray(GRAY_ALPHA.getchannel(0))),
    "palette.png": (PALETTE, np.asarray(PALETTE.convert("RGB"))),
    "sixteen.png": (Image.fromarray(RAMP), gray(RAMP >> 8)),
    "sixteen.tif": (Image.fromarray(RAMP), gray(RAMP >> 8)),
    "cmyk.tif": (Image.fromarray(SQUARES).convert("CMYK"), SQUARES),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_mapper_and_detector_see_the_same_eight_bit_rgb(tmp_path, name):
    image, expected = UNUSUAL[name]
    image.save(tmp_path / name)
    pixels = to_rgb(tmp_path / name)
    assert pixels.shape == (6, 8, 3) and pixels.dtype == np.uint8 and image_size(tmp_path / name) == (8, 6)
    assert np.array_equal(mapped(tmp_path / name), pixels)
    with Image.open(tmp_path / name) as opened:
        assert np.array_equal(to_rgb(opened), pixels)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_pixels_and_the_size_alike(tmp_path, orientation):
    """Where the first row and column of the stored image are seen, by the table of the EXIF standard."""
    first_row = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((6, 8, 3), np.uint8)
    stored[0] = 255
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    pixels = to_rgb(tmp_path / "a.png")
    assert pixels.shape[:2] == image_size(tmp_path / "a.png")[::-1] == ((8, 6) if orientation > 4 else (6, 8))
    sides = {"top": pixels[0], "bottom": pixels[-1], "left": pixels[:, 0], "right": pixels[:, -1]}
    assert [side for side, values in sides.items() if (values == 255).all()] == [first_row[orientation]]
    assert np.array_equal(mapped(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_whose_white_is_not_known_are_refused_with_the_remedy(tmp_path, kind):
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / "a.tif")
    for read in (mapped, to_rgb, image_size):
        with pytest.raises(OSError, match="convert it to 8 bits"):
            read(tmp_path / "a.tif")


def png_that_says(width, height):
    """A png whose header promises more than there is."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    content = bytearray(file.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def png_with_a_text_bomb():
    file, info = io.BytesIO(), PngInfo()
    info.add_text("a", "x" * 10**7, zip=True)
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=info)
    return file.getvalue()


BAD_IMAGES = {
    "gigantic": png_that_says(60_000, 60_000),
    "text bomb": png_with_a_text_bomb(),
    "cut short": png_that_says(80, 80),
    "empty": b"",
    "text": b"<svg/>",
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_one_error_that_names_it_and_takes_no_memory(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(BAD_IMAGES[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (mapped, to_rgb):
        with pytest.raises(UnreadableImageError, match=r"Cannot read the image .*x\.png"):
            read(tmp_path / "x.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# COCO json


def write_coco(folder, change=lambda content: None):
    """A small json as changed; returns its path."""
    content = {
        "images": [{"id": n, "file_name": f"images/{n}.jpg", "width": 64, "height": 48} for n in (1, 2)],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} for n in (1, 2)
        ],
    }
    change(content)
    path = folder / "own.json"
    path.write_text(json.dumps(content))
    return str(path)


def of(part, **values):
    return lambda content: content[part][0].update(values)


BAD_COCO = {
    "nan in a box": (of("annotations", bbox=[1, 2, float("nan"), 4]), r"annotations\[0\] has the bbox"),
    "infinite box": (of("annotations", bbox=[1, 2, float("inf"), 4]), r"annotations\[0\] has the bbox"),
    "negative side": (of("annotations", bbox=[1, 2, -3, 4]), r"no side negative"),
    "huge box": (of("annotations", bbox=[1, 2, 1e30, 4]), "none beyond 1000000"),
    "huge integer in a box": (of("annotations", bbox=[10**400, 2, 3, 4]), "none beyond 1000000"),
    "three numbers": (of("annotations", bbox=[1, 2, 3]), "has the bbox"),
    "texts in a box": (of("annotations", bbox=["1", "2", "3", "4"]), "has the bbox"),
    "box is null": (of("annotations", bbox=None), "has the bbox None"),
    "nan area": (of("annotations", area=float("nan")), "a finite number"),
    "crowd of 7": (of("annotations", iscrowd=7), "0 or 1"),
    "list as image": (of("annotations", image_id=[1]), "has the image_id"),
    "text as category": (of("annotations", category_id="3"), "has the category_id '3', where a whole number"),
    "true as id": (of("annotations", id=True), "has the id True"),
    "negative width": (of("images", width=-64), "has the width -64"),
    "no height": (of("images", height=0), "has the height 0"),
    "fractional height": (of("images", height=48.5), "has the height 48.5"),
    "gigantic image": (of("images", height=10**5, width=10**5), "more than 178956970 pixels"),
    "number as file": (of("images", file_name=7), "has the file_name 7"),
    "number as name": (of("categories", name=7), "has the name 7"),
    "an image twice": (of("images", id=2), "some id occurs twice in 'images'"),
    "a box twice": (of("annotations", id=2), "some id occurs twice in 'annotations'"),
    "unknown category": (of("annotations", category_id=9), r"categories \[9\]"),
}


@pytest.mark.parametrize("kind", BAD_COCO)
def test_absurd_coco_json_is_an_error_that_names_the_entry_and_what_is_needed(tmp_path, kind):
    change, words = BAD_COCO[kind]
    with pytest.raises(ValueError, match=rf"own\.json is not in COCO's format: .*{words}"):
        read_coco_json(write_coco(tmp_path, change))


def test_lists_nested_deeply_are_an_error(tmp_path):
    (tmp_path / "own.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_coco_json(str(tmp_path / "own.json"))


def test_a_box_of_no_width_and_one_of_an_image_that_is_not_listed_are_left_to_the_readers(tmp_path):
    path = write_coco(tmp_path, of("annotations", bbox=[1, 2, 0, 4], image_id=77))
    assert len(read_coco_json(path)["annotations"]) == 2


@pytest.mark.parametrize("count", [10**4, pytest.param(10**6, marks=pytest.mark.slow)])
def test_so_many_boxes_in_one_json_are_checked(tmp_path, count):
    boxes = [{"id": n, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]} for n in range(count)]
    path = write_coco(tmp_path, lambda content: content.update(annotations=boxes))
    assert len(read_coco_json(path)["annotations"]) == count


# Configs

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BAD_CONFIGS = {
    "code": ("OUTPUT_DIR: !!python/object/apply:os.mkdir [{mark}]", "python/object/apply:os.mkdir.* could run code"),
    "name of a function": ("OUTPUT_DIR: !!python/name:os.system", "could run code"),
    "unknown tag": ("OUTPUT_DIR: !foo x", "not yaml"),
    "bomb of aliases": (ALIASES, "stands for .* values, more than 100000"),
    "alias of itself": ("a: &a [*a]", "the value that it is in"),
    "base of itself": ("_BASE_: own.yaml", "leads back to itself"),
    "base on the network": ("_BASE_: http://127.0.0.1:9/a.yaml", "from this machine alone"),
    "deep": ("a: " + "[" * 10**4, "too deeply"),
    "list": ("- MODEL", "not a mapping"),
    "nothing": ("", "not a mapping"),
    "gigantic": ("a: " + "x" * 10**6, "more than 1000000 characters"),
    "bytes": ("a: \x01", "not yaml"),
    "number for a node": ("MODEL: 3", "wrong type"),
    "null": ("TEST: {BATCH_SIZE: null}", "wrong type"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_hostile_config_is_refused_with_a_message_and_runs_nothing(tmp_path, kind):
    text, words = BAD_CONFIGS[kind]
    mark, path = tmp_path / "mark", tmp_path / "own.yaml"
    path.write_text(text.replace("{mark}", str(mark)))
    with pytest.raises(ValueError, match=rf"(?s)own\.yaml.*{words}"):
        setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])
    assert not mark.exists()


def test_code_in_a_base_is_refused_too(tmp_path):
    (tmp_path / "base.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml")
    with pytest.raises(ValueError, match="could run code"):
        setup_cfg(str(tmp_path / "own.yaml"))


# Pickled weights

WEIGHTS = {"stem.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "half": np.ones(3, np.float16)}


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_weights_of_the_model_zoo_are_read_exactly_and_load_into_torch(tmp_path, protocol):
    weights = {**WEIGHTS, "big endian": np.arange(3, dtype=">i8"), "fortran": np.asfortranarray(np.eye(3)[:2])}
    content = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    convert_weights.convert_model_zoo(str(tmp_path / "a.pkl"), str(tmp_path / "a.pth"))
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["__author__"] == "Caffe2" and loaded["matching_heuristics"] is True
    assert loaded["model"].keys() == weights.keys()
    assert all(np.array_equal(tensor.numpy(), weights[name]) for name, tensor in loaded["model"].items())


def test_a_pickle_of_python_2_and_an_ordered_dict_are_read(tmp_path):
    """Written by Python 2's cPickle, protocol 2: the arrays' bytes are a text."""
    python2 = (
        b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
        b"q\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff"
        b"\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0tbs."
    )
    path = tmp_path / "a.pkl"
    for content in (python2, pickle.dumps(OrderedDict(w=np.array([1, -2], np.float32)))):
        path.write_bytes(content)
        assert read_model_zoo(path)[0]["w"].tolist() == [1, -2]


BAD_PICKLES = {
    "a function": (lambda mark: {"model": Evil(mark)}, r"names posix\.mkdir, which could run code"),
    "a function beside weights": (lambda mark: {"model": WEIGHTS, "more": Evil(mark)}, "could run code"),
    "a class": (lambda mark: {"model": WEIGHTS, "path": Path("x")}, r"names pathlib"),
    "a tensor": (lambda mark: {"w": torch.ones(2)}, r"names torch\._utils"),
    "objects": (lambda mark: {"w": np.array([None, "x"], dtype=object)}, "array of 'O8'"),
    "texts": (lambda mark: {"w": np.array(["x"])}, "array of 'U1'"),
    "records": (lambda mark: {"w": np.zeros(2, dtype=[("a", "f4")])}, "array of 'V4'"),
    "a list": (lambda mark: [1], "holds a list"),
    "no weights": (lambda mark: {"model": {}}, "no array"),
}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_a_pickle_of_anything_else_is_refused_by_name_and_runs_nothing(tmp_path, kind):
    make, words = BAD_PICKLES[kind]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(make(tmp_path / "mark")))
    with pytest.raises(RefusedPickleError, match=rf"a\.pkl is refused.*{words}"):
        convert_weights.convert_model_zoo(str(tmp_path / "a.pkl"), str(tmp_path / "a.pth"))
    assert not (tmp_path / "mark").exists() and not (tmp_path / "a.pth").exists()


MEMORY_BOMB = b"\x80\x02}r\xff\xff\xff\x7f."  # memo entry 2^31 - 1
LYING_SHAPE = pickle.dumps({"w": np.ones(4, np.float32)}, protocol=2).replace(b"K\x04\x85", b"K\x09\x85")


@pytest.mark.parametrize(
    "content, words",
    [
        (MEMORY_BOMB, "more memory"),
        (LYING_SHAPE, "4 numbers for an array"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_damaged_pickle_is_an_error(tmp_path, content, words):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(RefusedPickleError, match=words):
        read_model_zoo(tmp_path / "a.pkl")
