"""BDD100K's detection labels in Scalabel's format (bdd100k, doc/source/format.rst).

Names and ignored categories as in the toolkit's configs/det.toml. Boxes include their last pixel, as in
scalabel/label/transforms.py.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from soma_det.data.convert.records import Box, Image, Report, find, measure

# The file of 2018 has bike, motor and person.
NAMES = {"bike": "bicycle", "motor": "motorcycle", "person": "pedestrian", "caravan": "car", "van": "car"}
IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}


def read_scalabel(
    root: Path, report: Report, *, split: str, timeofday: Sequence[str] = (), weather: Sequence[str] = ()
) -> Iterator[Image]:
    """Read a split, or the frames of it that were taken at some time of day or in some weather.

    Args:
        timeofday: of daytime, night, dawn/dusk, undefined; empty: all.
        weather: of clear, overcast, partly cloudy, rainy, snowy, foggy, undefined; empty: all.

    Raises:
        ValueError: no frame has these attributes; the message says which there are.
    """
    path = find(root, f"labels/det_20/det_{split}.json", f"labels/bdd100k_labels_images_{split}.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    frames = content["frames"] if isinstance(content, dict) else content
    wanted = {key: values for key, values in (("timeofday", timeofday), ("weather", weather)) if values}
    chosen = [f for f in frames if all(_attribute(f, key) in values for key, values in wanted.items())]
    if not chosen:
        there = {key: dict(Counter(_attribute(frame, key) for frame in frames)) for key in wanted}
        raise ValueError(f"No frame of {path} has {wanted}; the file has {there}. Spell the attribute as the file.")
    folder = find(root, f"images/100k/{split}")
    for frame in sorted(chosen, key=lambda frame: frame["name"]):
        name = (folder / frame["name"]).relative_to(root).as_posix()
        if size := measure(root, name, report):
            yield Image(name, *size, list(_boxes(frame, report)))


def _attribute(frame: dict, key: str) -> str:
    return (frame.get("attributes") or {}).get(key, "undefined")


def _boxes(frame: dict, report: Report) -> Iterator[Box]:
    for label in frame.get("labels") or ():  # null, or no key at all, in frames without objects
        box, category = label.get("box2d"), label["category"]
        if box is None:  # lanes and drivable areas, in the file of 2018
            report.left_out[f"{category} (no box)"] += 1
            continue
        crowd = category in IGNORED or bool((label.get("attributes") or {}).get("crowd"))
        name = IGNORED.get(category) or NAMES.get(category, category)
        yield Box(name, (box["x1"], box["y1"], box["x2"] + 1, box["y2"] + 1), crowd)
