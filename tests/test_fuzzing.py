"""Made-up files: whatever is in them, only the documented errors come out, within a bound of time and memory.

500 cases in all, or as many as $SOMA_DET_FUZZ_CASES says; `make fuzz` runs 20,000.
"""

import functools
import io
import json
import os
import pickle
import resource
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from adapter_cases import adapt, plain_vit
from detectron2.data.datasets.coco import load_coco_json
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from soma_det.adapters import load_adapter, save_adapter
from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer, DamagedCheckpointError
from soma_det.checkpoint.pickled import RefusedPickleError, read_model_zoo
from soma_det.config import setup_cfg
from soma_det.config.defaults import default_cfg, flatten
from soma_det.data.datasets.coco_json import read_coco_json
from soma_det.data.datasets.voc_xml import BrokenAnnotationError, read_objects, to_detectron2_box
from soma_det.utils.images import UnreadableImageError, image_size, read_image

CASES = int(os.environ.get("SOMA_DET_FUZZ_CASES", "500"))
TARGETS = 7  # tests below
SECONDS, MEBIBYTES = 20, 300  # of one case, on a busy machine
fuzz = settings(
    max_examples=max(CASES // TARGETS, 1),
    derandomize=CASES <= 500,  # the same cases in every run of the suite
    database=None,
    deadline=None,
    phases=[Phase.generate],  # without shrinking, which takes minutes for files of this size
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def bounded(*errors):
    """Lets these errors pass, and no other; fails where the block takes too long or too much memory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except errors as error:
        assert str(error)
    assert time.perf_counter() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@st.composite
def damaged(draw, *contents):
    """One of these files with up to eight bytes changed, cut out or put in, or its end cut off."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 8))):
        place, kind = draw(st.integers(0, len(content))), draw(st.integers(0, 3))
        if kind == 0 and place < len(content):
            content[place] = draw(st.integers(0, 255))
        elif kind == 1:
            del content[place : place + draw(st.integers(1, 16))]
        elif kind == 2:
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif draw(st.booleans()):
            del content[place:]
    return bytes(content)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 2**63, 10**30, 1e308]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)

# XML

TAGS = ("annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "difficult", "part")
PIECES = [f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]
PIECES += [
    '<!DOCTYPE a [<!ENTITY e "x">]>',
    "&e;",
    "&amp;",
    "<![CDATA[",
    "]]>",
    "<?xml version='1.0'?>",
    "1e999",
    "nan",
]
OBJECT = "<object><name>{}</name><bndbox>" + "".join(f"<{tag}>{{}}</{tag}>" for tag in TAGS[4:8]) + "</bndbox></object>"
XML = b"<annotation>" + OBJECT.format("car", 1, 2, 3, 4).encode() * 2 + b"</annotation>"
FIELDS = st.tuples(st.text(max_size=5), *[st.one_of(NUMBERS.map(str), st.text(max_size=5))] * 4)
OBJECTS = st.lists(FIELDS, max_size=4).map(
    lambda all_fields: f"<annotation>{''.join(OBJECT.format(*fields) for fields in all_fields)}</annotation>".encode(
        errors="replace"
    )
)
XMLS = st.one_of(
    damaged(XML), OBJECTS, st.lists(st.sampled_from(PIECES), max_size=20).map(lambda p: "".join(p).encode())
)


@fuzz
@given(content=XMLS)
def test_annotations_in_xml(folder, content):
    with bounded(BrokenAnnotationError):
        for name, box in read_objects(put(folder, "a.xml", content), Counter()):
            inside = to_detectron2_box(box, 64, 48, Counter())
            assert name and (inside is None or (0 <= inside[0] < inside[2] <= 64 and 0 <= inside[1] < inside[3] <= 48))


# COCO json

COCO = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in (1, 2)],
    "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "bus"}],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} for n in (1, 2)
    ],
}


@st.composite
def changed_coco(draw):
    """The json above with some values of other kinds."""
    content = json.loads(json.dumps(COCO))
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(COCO)))
        entry = draw(st.sampled_from(content[part])) if isinstance(content.get(part), list) and content[part] else None
        if draw(st.integers(0, 9)) == 0 or not isinstance(entry, dict) or not entry:
            content[part] = draw(VALUES)
        elif draw(st.booleans()):
            entry["bbox"] = draw(st.lists(NUMBERS, min_size=4, max_size=4))
        else:
            entry[draw(st.sampled_from(sorted(entry)))] = draw(VALUES)
    return json.dumps(content).encode()


@fuzz
@given(content=st.one_of(changed_coco(), damaged(json.dumps(COCO).encode())))
def test_coco_json_and_what_is_accepted_loads_in_detectron2(folder, content):
    path = put(folder, "a.json", content)
    with bounded(ValueError):
        read_coco_json(str(path))
        for record in load_coco_json(str(path), str(folder)):
            assert record["file_name"].startswith(str(folder)) and 0 < record["height"] * record["width"] < 2**28
            assert all(np.isfinite(entry["bbox"]).all() for entry in record["annotations"])


# Configs

KEYS = sorted(flatten(default_cfg()))
TEXT = b"MODEL:\n  VIT: {NAME: test_vit, WEIGHTS: ''}\n  BACKBONE: {NAME: build_soma_vit_backbone}\nSEED: 9\n"


def nested(settings_):
    """{"A.B": 1} as yaml of {"A": {"B": 1}}."""
    top: dict = {}
    for key, value in settings_.items():
        *parents, last = key.split(".")
        node = top
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return yaml.safe_dump(top).encode(errors="replace")


SETTINGS = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3).map(nested)


@fuzz
@given(content=st.one_of(damaged(TEXT), SETTINGS))
def test_configs(folder, content):
    with bounded(ValueError, FileNotFoundError):
        setup_cfg(str(put(folder, "a.yaml", content)), ["MODEL.DEVICE", "cpu"])


# Images


def encoded(kind, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGES = [encoded(kind) for kind in ("png", "jpeg", "bmp", "webp", "tiff")]
IMAGES += [
    encoded("jpeg", exif=EXIF),
    encoded("jpeg", "CMYK"),
    encoded("png", "LA"),
    encoded("png", "P"),
    encoded("gif"),
]


@fuzz
@given(content=damaged(*IMAGES))
def test_images(folder, content):
    path = put(folder, "a.jpg", content)
    with bounded(UnreadableImageError):
        pixels = read_image(path)
        assert pixels.dtype == np.uint8 and pixels.shape[:2] == image_size(path)[::-1]


# Weights


@functools.cache
def adapter_file():
    """A saved adapter: an 8-byte length, a header in json, tensors."""
    base, vit = plain_vit(), plain_vit()
    vit.load_state_dict(base.state_dict())
    adapt(vit, "rein")
    save_adapter(vit, path := os.path.join(os.environ.get("TMPDIR", "/tmp"), f"fuzz_{os.getpid()}.safetensors"), base)
    with open(path, "rb") as file:
        content = file.read()
    os.remove(path)
    return base.state_dict(), content


@st.composite
def changed_header(draw):
    """The file above with other values in its header, or with damage in it."""
    content = adapter_file()[1]
    length = int.from_bytes(content[:8], "little")
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(content[: 8 + length])) + content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(sorted(metadata)))
        metadata[key] = draw(st.text(max_size=8) | VALUES.map(json.dumps))
    if draw(st.booleans()):
        entry = header[draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))]
        entry[draw(st.sampled_from(["shape", "data_offsets", "dtype"]))] = draw(VALUES)
    changed = json.dumps(header, allow_nan=True).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


@fuzz
@given(content=st.deferred(changed_header))
def test_headers_of_safetensors(folder, content):
    vit = plain_vit()
    vit.load_state_dict(adapter_file()[0])
    with bounded(ValueError):
        load_adapter(vit, put(folder, "a.safetensors", content))


def saved(content):
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


CHECKPOINT = saved({"model": {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, "iteration": 3})


@fuzz
@given(content=damaged(CHECKPOINT))
def test_checkpoints_of_torch(folder, content):
    path = str(put(folder, "a.pth", content))
    with bounded(DamagedCheckpointError):
        AtomicCheckpointer(torch.nn.Linear(1, 1))._torch_load(path)


ZOO = [
    pickle.dumps({"model": {"w": np.ones((2, 2), np.float32)}, "__author__": "x"}, protocol=protocol)
    for protocol in (0, 2, 4, 5)
]


@fuzz
@given(content=damaged(*ZOO))
def test_pickles_of_the_model_zoo(folder, content):
    with bounded(RefusedPickleError):
        read_model_zoo(put(folder, "a.pkl", content))
