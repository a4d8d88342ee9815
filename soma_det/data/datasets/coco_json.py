"""Checks a COCO json before Detectron2 reads it, so that a broken file stops a program at its start."""

import json
import math
from collections.abc import Callable
from pathlib import Path

from soma_det.utils.files import leaves_folder
from soma_det.utils.images import MOST_PIXELS

FAR = 1_000_000  # pixels; no side of a box or image is longer, and no corner lies farther away


def read_classes(json_file: str) -> list[str]:
    """The class names of a COCO json by rising category id, as Detectron2's load_coco_json numbers them.

    Raises:
        ValueError: the file is not in COCO's format.
    """
    categories = read_coco_json(json_file)["categories"]
    return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]


def read_coco_json(json_file: str) -> dict:
    """The content of a COCO json.

    Raises:
        ValueError: the file is not in COCO's format.
    """
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
        fault = _find_fault(content)
    except ValueError as error:  # also what is not UTF-8
        fault = f"not valid json: {error}"
    except RecursionError:
        fault = "its lists are nested too deeply"
    if fault:
        raise ValueError(f"{json_file} is not in COCO's format: {fault}.")
    return content


def _find_fault(content: object) -> str:
    """What load_coco_json would fail on, in words; empty if nothing."""
    if not isinstance(content, dict):
        return "it needs an object at its top"
    for part, keys in KEYS.items():
        entries = content.get(part)
        if not isinstance(entries, list) or not (entries or part == "annotations"):
            return f"it needs a list {part!r}"
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or any(key not in entry for key in keys):
                return f"{part}[{index}] needs the keys {', '.join(keys)}"
            for key, (is_right, wanted) in (keys | OPTIONAL.get(part, {})).items():
                if key in entry and not is_right(entry[key]):
                    return f"{part}[{index}] has the {key} {_short(entry[key])}, where {wanted} is needed"
            if part == "images" and entry["height"] * entry["width"] > MOST_PIXELS:
                return f"{part}[{index}] has more than {MOST_PIXELS} pixels"
        if len({entry["id"] for entry in entries}) < len(entries):
            return f"some id occurs twice in {part!r}"
    unknown = {box["category_id"] for box in content["annotations"]} - {of["id"] for of in content["categories"]}
    return f"it has boxes of the categories {sorted(unknown)}, which it does not list" if unknown else ""


def _is_id(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= FAR


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and not leaves_folder(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < math.inf  # never so for NaN


def _is_box(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(type(v) in (int, float) for v in value):
        return False
    return all(abs(v) <= FAR for v in value) and value[2] >= 0 and value[3] >= 0  # never so for NaN


def _is_flag(value: object) -> bool:
    return value in (0, 1)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}..."


Check = tuple[Callable[[object], bool], str]
ID: Check = (_is_id, "a whole number")
SIDE: Check = (_is_side, f"a whole number from 1 to {FAR}")
KEYS: dict[str, dict[str, Check]] = {
    "images": {
        "id": ID,
        "file_name": (_is_file_name, "a path inside the folder of images"),
        "height": SIDE,
        "width": SIDE,
    },
    "categories": {"id": ID, "name": (_is_name, "a text")},
    "annotations": {
        "id": ID,
        "image_id": ID,
        "category_id": ID,
        "bbox": (_is_box, f"[x, y, width, height], finite, no side negative and none beyond {FAR},"),
    },
}
OPTIONAL: dict[str, dict[str, Check]] = {
    "annotations": {"iscrowd": (_is_flag, "0 or 1"), "area": (_is_number, "a finite number")}
}
