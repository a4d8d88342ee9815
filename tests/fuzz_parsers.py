"""Every reader of files from outside: a few valid files, what a reading must hold, and the errors that it documents.

test_fuzzing.py and fuzz_atheris.py make up the files.
"""

import functools
import io
import json
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from adapter_cases import adapt, plain_vit
from detectron2.data.datasets.coco import load_coco_json
from PIL import Image

from soma_det.adapters import load_adapter, save_adapter
from soma_det.checkpoint.detection_checkpoint import AtomicCheckpointer, DamagedCheckpointError
from soma_det.checkpoint.pickled import RefusedPickleError, read_model_zoo
from soma_det.config import setup_cfg
from soma_det.data.datasets.coco_json import read_coco_json
from soma_det.data.datasets.voc_xml import BrokenAnnotationError, read_objects, to_detectron2_box
from soma_det.utils.images import UnreadableImageError, image_size, read_image

# XML

TAGS = ("annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "difficult", "part")
OBJECT = "<object><name>{}</name><bndbox>" + "".join(f"<{tag}>{{}}</{tag}>" for tag in TAGS[4:8]) + "</bndbox></object>"
XML = b"<annotation>" + OBJECT.format("car", 1, 2, 3, 4).encode() * 2 + b"</annotation>"


def check_xml(path: Path) -> None:
    """Every box is inside the image, or left out."""
    for name, box in read_objects(path, Counter()):
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


def check_coco(path: Path) -> None:
    """What is accepted loads in Detectron2."""
    read_coco_json(str(path))
    for record in load_coco_json(str(path), str(path.parent)):
        assert record["file_name"].startswith(str(path.parent)) and 0 < record["height"] * record["width"] < 2**28
        assert all(np.isfinite(entry["bbox"]).all() for entry in record["annotations"])


# Configs

CONFIG = b"MODEL:\n  VIT: {NAME: test_vit, WEIGHTS: ''}\n  BACKBONE: {NAME: build_soma_vit_backbone}\nSEED: 9\n"


def check_config(path: Path) -> None:
    """It is read."""
    setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])


# Images


def encoded(kind: str, mode: str = "RGB", **options) -> bytes:
    """16 x 12 pixels as a file of this kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


@functools.cache
def images() -> list[bytes]:
    """Formats and modes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(kind) for kind in ("png", "jpeg", "bmp", "webp", "tiff", "gif")]
    return [
        *files,
        encoded("jpeg", exif=exif),
        encoded("jpeg", "CMYK"),
        encoded("png", "LA"),
        encoded("png", "P"),
    ]


def check_image(path: Path) -> None:
    """The pixels are those of the size."""
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape[:2] == image_size(path)[::-1]


# Weights


@functools.cache
def adapter_file() -> tuple[dict, bytes]:
    """The ViT, and a saved adapter: an 8-byte length, a header in json, tensors."""
    base, vit = plain_vit(), plain_vit()
    vit.load_state_dict(base.state_dict())
    adapt(vit, "rein")
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(vit, path := os.path.join(folder, "a.safetensors"), base)
        return base.state_dict(), Path(path).read_bytes()


def check_adapter(path: Path) -> None:
    """It loads into its ViT."""
    vit = plain_vit()
    vit.load_state_dict(adapter_file()[0])
    load_adapter(vit, path)


def checkpoint() -> bytes:
    """A file of torch.save."""
    content = {"model": {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, "iteration": 3}
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def check_checkpoint(path: Path) -> None:
    """It is read."""
    AtomicCheckpointer(torch.nn.Linear(1, 1))._torch_load(str(path))


ZOO = {"model": {"w": np.ones((2, 2), np.float32)}, "__author__": "x"}


def check_pickle(path: Path) -> None:
    """It is read."""
    read_model_zoo(path)


@dataclass(frozen=True)
class Parser:
    """A reader of one kind of file."""

    suffix: str
    check: Callable[[Path], None]
    errors: tuple[type[Exception], ...]  # documented
    seeds: Callable[[], list[bytes]]

    def read(self, folder: Path, content: bytes) -> None:
        """Read this content from a file; an error that is not documented, or has no text, comes out."""
        path = folder / f"a{self.suffix}"
        path.write_bytes(content)
        try:
            self.check(path)
        except self.errors as error:
            assert str(error)


PARSERS = {
    "xml": Parser(".xml", check_xml, (BrokenAnnotationError,), lambda: [XML]),
    "coco": Parser(".json", check_coco, (ValueError,), lambda: [json.dumps(COCO).encode()]),
    "config": Parser(".yaml", check_config, (ValueError, FileNotFoundError), lambda: [CONFIG]),
    "image": Parser(".jpg", check_image, (UnreadableImageError,), images),
    "adapter": Parser(".safetensors", check_adapter, (ValueError,), lambda: [adapter_file()[1]]),
    "checkpoint": Parser(".pth", check_checkpoint, (DamagedCheckpointError,), lambda: [checkpoint()]),
    "pickle": Parser(
        ".pkl", check_pickle, (RefusedPickleError,), lambda: [pickle.dumps(ZOO, protocol=n) for n in (0, 2, 4, 5)]
    ),
}
