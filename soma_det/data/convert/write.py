"""Writes what a reader yields as one COCO json, with the terms of use and what was not taken over."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from soma_det.data.convert.records import Box, Image, Report
from soma_det.data.datasets.class_lists import class_numbers
from soma_det.data.datasets.diverse_weather import MAX_SKIPPED_SHARE
from soma_det.utils.files import write_text


def write_coco(
    output: Path,
    images: Iterable[Image],
    classes: Sequence[str],
    report: Report,
    *,
    root: Path,
    info: Mapping,
    terms: Mapping[str, str],
) -> None:
    """Write a COCO json, atomically. Images without boxes stay in; category ids are 1, 2, ... in the classes' order.

    Args:
        report: that of the reader, to which classes left out and boxes cut or dropped are added.
        root: the source's folder. ``info["image_root"]`` names it: relative to the json if below the json's folder.
        info: further entries of "info".
        terms: name and url of the only entry of "licenses".

    Raises:
        OSError: more than 1 percent of the images were skipped.
        ValueError: the output is inside the source, or there are no images, or no objects of these classes.
    """
    if output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"--output {output} is inside the source {root}, which stays as it is: choose another folder.")
    entries: list[dict] = []
    annotations: list[dict] = []
    numbers = class_numbers(classes)
    for image in images:
        entry = {"file_name": image.file_name, "width": image.width, "height": image.height, "license": 1}
        entries.append({"id": len(entries) + 1, **entry})
        for found in _annotations(image, numbers, report):
            annotations.append({"id": len(annotations) + 1, "image_id": len(entries), **found})
    _check(len(entries), len(annotations), classes, report, root)
    content = {
        "info": {**info, "image_root": _image_root(root, output), **report.as_dict()},
        "licenses": [{"id": 1, **terms}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
        "images": entries,
        "annotations": annotations,
    }
    write_text(output, json.dumps(content))


def _annotations(image: Image, numbers: Mapping[str, int], report: Report) -> Iterator[dict]:
    for box in image.boxes:
        number = numbers.get(box.name.casefold())
        if number is None:
            report.left_out[box.name] += 1
        elif cut := _cut(box, image, report.faults):
            x0, y0, x1, y1 = cut
            size = (x1 - x0, y1 - y0)
            area = size[0] * size[1]
            yield {"category_id": number + 1, "bbox": [x0, y0, *size], "area": area, "iscrowd": int(box.crowd)}


def _cut(box: Box, image: Image, faults: Counter) -> tuple[float, ...] | None:
    """The part of the box that is inside the image; None if there is none."""
    limits = (image.width, image.height) * 2
    x0, y0, x1, y1 = cut = tuple(min(max(value, 0), limit) for value, limit in zip(box.xyxy, limits))
    if x1 <= x0 or y1 <= y0:
        faults["boxes dropped, empty or outside the image"] += 1
        return None
    faults["boxes cut at the image's edge"] += cut != tuple(box.xyxy)
    return cut


def _check(images: int, boxes: int, classes: Sequence[str], report: Report, root: Path) -> None:
    skipped = sum(map(len, report.skipped.values()))
    if skipped > MAX_SKIPPED_SHARE * (images + skipped):
        reasons = ", ".join(f"{len(names)} {why} (such as {names[0]})" for why, names in report.skipped.items())
        raise OSError(
            f"{skipped} of the {images + skipped} images listed in {root} cannot be used, more than "
            f"{MAX_SKIPPED_SHARE:.0%}: {reasons}. Complete the copy."
        )
    if not boxes:
        found = ", ".join(f"{name} {count}" for name, count in report.left_out.most_common()) or "none"
        raise ValueError(f"{root} gives no box of the classes {list(classes)} in {images} images; found: {found}.")


def _image_root(root: Path, output: Path) -> str:
    root, folder = root.absolute(), output.absolute().parent
    return root.relative_to(folder).as_posix() if root.is_relative_to(folder) else str(root)
