#!/usr/bin/env python
"""Count what data sets hold, compare it with published numbers, and draw a few images: see --help, or run

python tools/check_data.py --dataset cityscapes_val cityscapes_foggy_val
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image
from tabulate import tabulate

from soma_det.config import setup_cfg
from soma_det.config.defaults import default_cfg
from soma_det.data import register_from_config, register_prepared, register_weather_datasets
from soma_det.data.datasets.catalog import CATALOG
from soma_det.data.datasets.prepared import read_info
from soma_det.data.datasets.register import weather_root
from soma_det.data.datasets.sources import DataSet
from soma_det.evaluation.detections import GroundTruth, load_ground_truth
from soma_det.utils.contact_sheet import contact_sheet
from soma_det.utils.files import atomic_path
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import draw_ground_truth

EXAMPLES = """
Examples:

The data sets that a config trains and tests on:
    python tools/check_data.py --config-file configs/datasets/cityscapes_to_foggy.yaml
    python tools/check_data.py --config-file configs/diverse_weather/faster_rcnn_dinov2_s.yaml \\
        DATASETS.WEATHER.ROOT /data/diverseWeather

Prepared data sets by name (tools/prepare_data.py --help lists them):
    python tools/check_data.py --dataset bdd100k_day_val bdd100k_night_val
"""
CELL = 480  # pixels, width of an image on the sheet
REMEDY = (
    "Scores on this copy need not agree with published ones. Look at what was skipped, unpack the archives again, "
    "leave the annotation files as they are, and load or prepare it again: see datasets/README.md."
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Count what data sets hold, compare with published numbers, and draw a few images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE", help="check its DATASETS.TRAIN and DATASETS.TEST")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="check these of the catalog")
    parser.add_argument("--output", default="output/data_check.jpg", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--count", type=int, default=3, metavar="N", help="images drawn of each (%(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    if bool(args.config_file) == bool(args.dataset):
        parser.error("give either --config-file or --dataset")
    if args.count < 1:
        parser.error("--count is a number from 1")
    if not args.output.lower().endswith((".jpg", ".jpeg", ".png")):
        parser.error(f"--output is {args.output}: give an image file, .jpg or .png")
    return args


def main(args: argparse.Namespace) -> None:
    """Print the report and write the sheet.

    Raises:
        FileNotFoundError: none of the data sets is there; ValueError: a name or a setting is wrong.
    """
    names = register(args)
    truths, absent = load(names)
    if not truths:
        raise FileNotFoundError("\n".join(absent.values()))
    print("\n".join(report(truths)))
    for name, message in absent.items():
        print(f"\n{name}: CANNOT BE USED. {message}")
    with atomic_path(args.output) as temporary:
        Image.fromarray(draw_sheet(list(truths), args.count)).save(temporary, quality=88)
    print(f"\nWrote {args.output}: compare the boxes with the objects.")


def register(args: argparse.Namespace) -> list[str]:
    """Register the data sets of the config, or those named; return their names."""
    if args.config_file:
        cfg = setup_cfg(args.config_file, args.opts)
        register_from_config(cfg)
        return list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    weather = default_cfg().DATASETS.WEATHER
    root = weather_root(weather.ROOT)
    others = register_weather_datasets(weather.PREFIX, root, weather.DOMAINS, weather.CLASSES)
    for name in args.dataset:
        if name in CATALOG and CATALOG[name].reader:
            register_prepared(name)
        elif name not in others:
            raise ValueError(f"--dataset {name!r} is not in the catalog: give --config-file, or of {list(CATALOG)}.")
    return list(args.dataset)


def load(names: Sequence[str]) -> tuple[dict[str, GroundTruth], dict[str, str]]:
    """The ground truth of the data sets that can be loaded, and of the others why they cannot."""
    truths, absent = {}, {}
    for name in names:
        try:
            truths[name] = load_ground_truth(name)
        except OSError as error:
            absent[name] = str(error)
    return truths, absent


def report(truths: Mapping[str, GroundTruth]) -> Iterator[str]:
    """The lines of the report: two tables, and a paragraph on each data set."""
    rows = [
        [name, domain_of(name), len(truth.image_ids), count_empty(truth), int((~truth.ignored).sum())]
        + [int(truth.ignored.sum())]
        for name, truth in truths.items()
    ]
    headers = ["data set", "domain", "images", "without boxes", "boxes", "crowds, ignored"]
    yield tabulate(rows, headers, tablefmt="github")
    yield "\nBoxes by class:"
    classes = list(dict.fromkeys(name for truth in truths.values() for name in truth.classes))
    counts = {name: truth.counts() for name, truth in truths.items()}
    cells = [[name, *(count.get(of, "-") for of in classes)] for name, count in counts.items()]
    yield tabulate(cells, ["data set", *classes], tablefmt="github")
    for name, truth in truths.items():
        yield f"\n{name}"
        yield from (f"  {line}" for line in describe(name, truth))


def describe(name: str, truth: GroundTruth) -> Iterator[str]:
    """What is known of a data set: what was not taken over, differences from published numbers, a figure, terms."""
    json_file = MetadataCatalog.get(name).get("json_file")
    info = read_info(Path(json_file)) if json_file else {}
    yield (
        f"read from {json_file}"
        if json_file
        else "read from a VOC devkit; its line in the log above tells what was skipped or repaired, and why"
    )
    for why, found in info.get("skipped", {}).items():
        yield f"skipped: {found['images']} images {why}, such as {found['first'][0]}"
    for words, key in (("left out, other classes", "left_out"), ("repaired or dropped", "faults")):
        if info.get(key):
            yield f"{words}: {', '.join(f'{what} {count}' for what, count in info[key].items())}"
    entry = CATALOG.get(name)
    if entry is None:
        return
    yield from compare(entry, truth, info)
    if (figure := entry.published) is None:
        yield "published figure: none known whose split and metric are stated"
    else:
        score = f"{figure.metric} {figure.score}, {figure.detector}"
        yield f"published figure: {score}; on {figure.split} ({figure.source})"
    yield f"terms: {entry.source.terms} ({entry.source.homepage})"


def compare(entry: DataSet, truth: GroundTruth, info: Mapping) -> Iterator[str]:
    """Differences from the published numbers of images and boxes, in words; never an error by themselves."""
    usual = json.loads(json.dumps(dict(entry.options)))
    if info and (info.get("options") != usual or truth.classes != entry.classes):
        yield "prepared with other options or classes than usual, so not compared with published numbers"
        return
    counts = truth.counts()
    known = {**({"images": entry.images} if entry.images else {}), **entry.boxes}
    here = {"images": len(truth.image_ids), **counts}
    other = [f"{what} {here.get(what, 0):,} here, {number:,} there" for what, number in known.items()]
    differing = [words for words, (what, number) in zip(other, known.items()) if here.get(what, 0) != number]
    if differing:
        numbers = "numbers commonly cited, perhaps of another release" if entry.commonly_cited else "published numbers"
        yield f"DIFFERS from the {numbers}: {'; '.join(differing)}. {REMEDY}"
    elif known:
        yield "agrees with the published numbers"


def domain_of(name: str) -> str:
    """The label of a data set's weather; empty where none is known."""
    return MetadataCatalog.get(name).get("domain") or ""


def count_empty(truth: GroundTruth) -> int:
    """Number of images without any annotation."""
    return len(truth.image_ids) - len(np.unique(truth.image))


def draw_sheet(names: Sequence[str], count: int) -> np.ndarray:
    """RGB (H, W, 3): a column for each data set, of images spread over those that have boxes."""
    columns = {}
    for name in names:
        records, classes = DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes
        records = [record for record in records if record["annotations"]] or records
        chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, count).astype(int))]
        columns[name] = [draw_ground_truth(read_image(r["file_name"]), r, classes, CELL) for r in chosen]
    lists = [MetadataCatalog.get(name).thing_classes for name in names]
    same = all(classes == lists[0] for classes in lists)  # colors go by class number
    return contact_sheet(columns, CELL, lists[0] if same else ())


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"check_data.py: error: {error}")
