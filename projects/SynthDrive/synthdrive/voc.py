"""VOC annotation files: 1-based integer pixel coordinates, both corners inside the box."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from synthdrive.traffic import CLASSES


def annotation_xml(file_name: str, height: int, width: int, boxes: np.ndarray, labels: np.ndarray) -> bytes:
    """The VOC file of an image: boxes (M, 4) are XYXY in 0-based float pixels, labels (M,) indices into CLASSES."""
    root = ElementTree.Element("annotation")
    for tag, text in (("folder", "VOC2007"), ("filename", file_name)):
        ElementTree.SubElement(root, tag).text = text
    _add_numbers(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    ElementTree.SubElement(root, "segmented").text = "0"
    for box, label in zip(boxes, labels):
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = CLASSES[int(label)]
        x0, y0, x1, y1 = voc_corners(box, height, width)
        at_edge = x0 == 1 or y0 == 1 or x1 == width or y1 == height
        _add_numbers(entry, {"truncated": int(at_edge), "difficult": 0})
        _add_numbers(ElementTree.SubElement(entry, "bndbox"), {"xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1})
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root) + b"\n"


def voc_corners(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """XYXY edges in float pixels to the first and last pixel, counted from 1: (0, 0, 10, 5) becomes (1, 1, 10, 5)."""
    x0, y0 = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return x0 + 1, y0 + 1, x1, y1


def _add_numbers(parent: ElementTree.Element, numbers: dict[str, int]) -> None:
    for tag, number in numbers.items():
        ElementTree.SubElement(parent, tag).text = str(number)


def write_list(path: Path, names: list[str]) -> None:
    """An image set: one name without ending per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))
