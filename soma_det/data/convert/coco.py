"""COCO's own json, and ACDC's, of which the files of one condition can hold the annotations of all."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from soma_det.data.convert.records import Box, Image, Report, find, measure
from soma_det.data.datasets.coco_json import read_coco_json


def read_coco(
    root: Path, report: Report, *, labels: Sequence[str], images: Sequence[str], condition: str = ""
) -> Iterator[Image]:
    """Read a json. Classes go by the names in its categories, never by their ids.

    Args:
        labels, images: possible json files and folders of images; of each the first that exists is taken.
        condition: a folder in the ``file_name`` of the images to take; empty: all.
    """
    content, folder = read_coco_json(str(find(root, *labels))), find(root, *images)
    names = {category["id"]: category["name"] for category in content["categories"]}
    boxes = defaultdict(list)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        crowd = bool(annotation.get("iscrowd", 0) or annotation.get("ignore", 0))
        box = Box(names[annotation["category_id"]], (x, y, x + width, y + height), crowd)
        boxes[annotation["image_id"]].append(box)
    for entry in sorted(content["images"], key=lambda entry: entry["file_name"]):
        here = boxes.pop(entry["id"], [])
        if condition and condition not in Path(entry["file_name"]).parts[:-1]:
            continue
        name = (folder / entry["file_name"]).relative_to(root).as_posix()
        if size := measure(root, name, report):
            yield Image(name, *size, here)
    report.faults["boxes of images that the json does not list"] += sum(map(len, boxes.values()))
