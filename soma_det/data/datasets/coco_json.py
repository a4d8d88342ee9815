"""Checks a COCO json before Detectron2 reads it, so that a broken file stops a program at its start."""

import json
from pathlib import Path

KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


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
        if len({entry["id"] for entry in entries}) < len(entries):
            return f"some id occurs twice in {part!r}"
    unknown = {box["category_id"] for box in content["annotations"]} - {of["id"] for of in content["categories"]}
    return f"it has boxes of the categories {sorted(unknown)}, which it does not list" if unknown else ""
