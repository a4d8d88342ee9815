"""Reads one image of a Pascal VOC devkit, with the faults that real annotation files have.

Coordinates in the files are 1-based and inclusive (Everingham et al., "The PASCAL Visual Object Classes Challenge",
devkit documentation): a box over the whole image of W x H pixels is (1, 1, W, H). Detectron2's boxes are 0-based with
an exclusive end, so 1 is taken from xmin and ymin only (as detectron2/data/datasets/pascal_voc.py does).
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree

Box = Sequence[float]  # xmin, ymin, xmax, ymax


class FlaggedObject(NamedTuple):
    """An object of an annotation file: its box is as written, 1-based and inclusive."""

    name: str
    box: Box
    difficult: bool


class BrokenAnnotationError(ValueError):
    """An annotation file that is not well-formed, unsafe (entities), or not a VOC annotation."""


def read_objects(path: str | Path, faults: Counter) -> list[tuple[str, Box]]:
    """The (class name, box) pairs of an annotation file.

    Boxes are as written: (xmin, ymin, xmax, ymax), 1-based, inclusive. Objects without a name or without four finite
    numbers are left out. Of doubled tags the first counts. Both are counted in ``faults``. The flags "difficult" and
    "truncated" are not used: the weather benchmarks score on all objects.

    Raises:
        OSError: the file does not exist or cannot be opened.
        BrokenAnnotationError: the file cannot be parsed.
    """
    return [(found.name, found.box) for found in read_flagged_objects(path, faults)]


def read_flagged_objects(path: str | Path, faults: Counter) -> list[FlaggedObject]:
    """As :func:`read_objects`, with the flag "difficult"."""
    objects = []
    for element in _parse(path).iterfind("object"):
        faults["objects with doubled tags"] += _has_doubled_tags(element)
        name = (element.findtext("name") or "").strip()
        box = _read_box(element)
        if name and box is not None:
            objects.append(FlaggedObject(name, box, element.findtext("difficult", "0").strip() == "1"))
        else:
            faults["objects dropped without a name or box"] += 1
    return objects


def to_detectron2_box(box: Box, width: int, height: int, faults: Counter) -> list[float] | None:
    """A box of :func:`read_objects` as 0-based (x0, y0, x1, y1) in pixels (BoxMode.XYXY_ABS), inside the image.

    Swapped corners are put in order and what lies outside the image is cut off. None if the box is empty (xmax =
    xmin - 1, or ymax = ymin - 1) or outside the image. All of this is counted in ``faults``.
    """
    xmin, ymin, xmax, ymax = box
    sides = (xmax - xmin + 1, ymax - ymin + 1)
    if 0 in sides:
        faults["empty boxes dropped"] += 1
        return None
    if min(sides) < 0:
        faults["boxes turned round"] += 1
        (xmin, xmax), (ymin, ymax) = sorted((xmin, xmax)), sorted((ymin, ymax))
    moved = (xmin - 1, ymin - 1, xmax, ymax)
    x0, y0, x1, y1 = clipped = [min(max(value, 0.0), float(side)) for value, side in zip(moved, (width, height) * 2)]
    if x1 <= x0 or y1 <= y0:
        faults["boxes dropped outside the image"] += 1
        return None
    faults["boxes cut at the image's edge"] += tuple(clipped) != moved
    return clipped


def _parse(path: str | Path) -> Element:
    try:
        root = defusedxml.ElementTree.parse(str(path)).getroot()
    except (ParseError, ValueError, LookupError) as error:  # ValueError: forbidden entities; LookupError: encodings
        raise BrokenAnnotationError(f"{path} is not valid XML: {error!r}") from error
    if root.tag != "annotation":
        raise BrokenAnnotationError(f"{path} is not a VOC annotation: its root is <{root.tag}>, not <annotation>")
    return root


def _read_box(element: Element) -> Box | None:
    box = element.find("bndbox")
    texts = ["" if box is None else box.findtext(tag, "") for tag in ("xmin", "ymin", "xmax", "ymax")]
    try:
        corners = [float(text) for text in texts]
    except ValueError:
        return None
    return corners if all(map(math.isfinite, corners)) else None


def _has_doubled_tags(element: Element) -> bool:
    """Whether the object repeats one of its own tags or one of its box's. <part>s may repeat, and are not ours."""
    parents = (element, *element.iterfind("bndbox"))
    families = ([child.tag for child in parent if child.tag != "part"] for parent in parents)
    return any(len(set(tags)) < len(tags) for tags in families)
