"""Cityscapes, and Foggy and Rainy Cityscapes, which share its annotations: gtFine's polygons.

Polygons are drawn in their order, one over the other, as in instanceIds.png (cityscapesscripts, json2instanceImg.py),
and a box goes around what stays visible. Groups (cargroup) are crowds.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from soma_det.data.convert.records import Box, Image, Report, find, measure
from soma_det.data.datasets.class_lists import CITYSCAPES

THINGS = (*CITYSCAPES, "caravan", "trailer")  # the last two have instances and are not evaluated
NOT_DRAWN = "license plate"  # its id is negative


def read_cityscapes(
    root: Path, report: Report, *, split: str, images: Sequence[str] = ("leftImg8bit",), beta: Sequence[str] = ()
) -> Iterator[Image]:
    """Read a split.

    Args:
        images: possible folders of images, of which the first that exists is taken.
        beta: of Foggy Cityscapes, the densities of fog to take; empty: every image.
    """
    folder, truth = find(root, *(f"{name}/{split}" for name in images)), find(root, f"gtFine/{split}")
    for path in sorted(folder.glob("*/*.png")):
        stem, _, variant = path.stem.partition("_leftImg8bit")
        if beta and variant not in {f"_foggy_beta_{value}" for value in beta}:
            continue
        name = path.relative_to(root).as_posix()
        annotation = truth / path.parent.name / f"{stem}_gtFine_polygons.json"
        if not annotation.is_file():
            report.skipped["without an annotation file"].append(name)
        elif size := measure(root, name, report):
            annotated_size, boxes, hidden = _read_polygons(annotation)
            report.faults["objects dropped that others hide"] += hidden
            if size == annotated_size:
                yield Image(name, *size, boxes)
            else:
                report.skipped["of another size than the annotated image"].append(name)


@functools.lru_cache(maxsize=4)  # the fogs and rains of an image follow one another
def _read_polygons(path: Path) -> tuple[tuple[int, int], list[Box], int]:
    """The annotated image's width and height, the boxes of its things, and how many of them are hidden."""
    annotation = json.loads(path.read_text(encoding="utf-8"))
    size = (annotation["imgWidth"], annotation["imgHeight"])
    canvas = PillowImage.new("I", size)
    draw = ImageDraw.Draw(canvas)
    objects = [o for o in annotation["objects"] if not o.get("deleted") and o["label"] != NOT_DRAWN]
    for number, drawn in enumerate(objects, 1):
        draw.polygon([tuple(point) for point in drawn["polygon"]], fill=number)
    pixels = np.asarray(canvas)
    boxes, hidden = [], 0
    for number, drawn in enumerate(objects, 1):
        name = drawn["label"].removesuffix("group")
        if name in THINGS:
            visible = _extent(pixels, drawn["polygon"], number)
            hidden += visible is None
            boxes += [Box(name, visible, drawn["label"] != name)] if visible else []
    return size, boxes, hidden


def _extent(pixels: np.ndarray, polygon: list, number: int) -> tuple[float, float, float, float] | None:
    """The box around the pixels of this number, all of which are near the polygon; None if there is none."""
    corners = np.array(polygon, dtype=float)
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 2
    rows, columns = np.nonzero(pixels[top : max(bottom, 0), left : max(right, 0)] == number)
    if not len(rows):
        return None
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return float(left + x0), float(top + y0), float(left + x1), float(top + y1)
