"""Writes tiny data sets in the layout of Diverse Weather, for tests."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bus", "bike", "car", "motor", "person", "rider", "truck")
OBJECTS = (("car", (11, 6, 30, 20)), ("person", (41, 21, 44, 40)))  # 1-based, inclusive

VocObject = tuple[str, Sequence[float]]


def write_domain(
    root: Path, domain: str, splits: dict[str, Sequence[str]], objects: Sequence[VocObject] = OBJECTS
) -> Path:
    """Write a domain whose images all have the same objects; return its devkit folder."""
    devkit = Path(root) / domain / "VOC2007"
    for split, ids in splits.items():
        write_list(devkit, split, ids)
        for image_id in ids:
            write_image(devkit / "JPEGImages" / f"{image_id}.jpg")
            write_annotation(devkit / "Annotations" / f"{image_id}.xml", objects)
    return devkit


def write_list(devkit: Path, split: str, ids: Sequence[str]) -> None:
    path = devkit / "ImageSets" / "Main" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(ids) + "\n")


def write_image(path: Path, width: int = 64, height: int = 48, **save_options) -> None:
    """Write an image of colored squares, another for each file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big")
    squares = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST).save(path, **save_options)


def write_annotation(path: Path, objects: Sequence[VocObject], extra: str = "") -> None:
    """Write an annotation file as most of Diverse Weather's are: without <size>. ``extra`` goes in as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{''.join(object_xml(name, box) for name, box in objects)}{extra}</annotation>")


def object_xml(name: str, box: Sequence[float]) -> str:
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"


def hash_tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file below ``root``."""
    files = sorted(path for path in Path(root).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def real_weather_root() -> Path | None:
    """A folder of real photographs in several weathers, or None where there is none.

    $SOMA_DET_REAL_WEATHER names it: 740 photographs of highways and 481 of DAWN, with the domains daytime_clear,
    daytime_foggy and rainy in this project's layout.
    """
    root = os.environ.get("SOMA_DET_REAL_WEATHER")
    return Path(root) if root else None
