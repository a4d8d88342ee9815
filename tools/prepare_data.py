#!/usr/bin/env python
"""Write one COCO json for a split of a known data set: see --help, or run

python tools/prepare_data.py cityscapes_foggy_val --root /data/cityscapes
"""

import argparse
import sys
from pathlib import Path

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
from tqdm import tqdm

from soma_det.data.convert import Report, read
from soma_det.data.convert.write import write_coco
from soma_det.data.datasets.catalog import CATALOG
from soma_det.data.datasets.class_lists import CLASS_LISTS, choose_classes
from soma_det.data.datasets.prepared import prepared_file
from soma_det.data.datasets.sources import DataSet

PREPARED = {name: entry for name, entry in CATALOG.items() if entry.reader}
FILTERS = ("beta", "timeofday", "weather")


def examples() -> str:
    """The names, and one command for each source."""
    first = {entry.source.title: entry for entry in reversed(PREPARED.values())}
    commands = "\n".join(f"    {entry.command}" for entry in reversed(first.values()))
    return f"""
Names: {", ".join(PREPARED)}

Examples, one of each source:
{commands}

All three densities of fog; BDD100K in rain at night; Cityscapes' classes:
    python tools/prepare_data.py cityscapes_foggy_val --root /data/cityscapes --beta 0.005 0.01 0.02
    python tools/prepare_data.py bdd100k_val --root /data/bdd100k --timeofday night --weather rainy \\
        --output datasets/bdd100k_night_rainy_val.json
    python tools/prepare_data.py bdd100k_day_val --root /data/bdd100k --classes cityscapes
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write one COCO json for a split of a known data set. The source's files are only read.",
        epilog=examples(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a data set of the list below")
    parser.add_argument("--root", required=True, type=Path, metavar="DIR", help="the folder that was unpacked")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="default: NAME.json in $DETECTRON2_DATASETS, or in datasets"
    )
    lists = ", ".join(CLASS_LISTS)
    parser.add_argument("--classes", metavar="LIST", help=f"class names with commas between, or one of: {lists}")
    parser.add_argument("--beta", nargs="+", metavar="B", help="Foggy Cityscapes: densities of fog (default: 0.02)")
    parser.add_argument("--timeofday", nargs="+", metavar="T", help="BDD100K: daytime, night, dawn/dusk, undefined")
    parser.add_argument(
        "--weather", nargs="+", metavar="W", help="BDD100K: clear, overcast, rainy, snowy, foggy, 'partly cloudy'"
    )
    args = parser.parse_args(argv)
    if args.name not in PREPARED:
        parser.error(f"there is no data set {args.name!r}; choose of {', '.join(PREPARED)}")
    return args


def main(args: argparse.Namespace) -> Path:
    """Write the json and return its path."""
    entry = CATALOG[args.name]
    output = args.output or prepared_file(args.name)
    options = {**entry.options, **chosen_filters(args, entry)}
    classes = choose_classes(args.classes) if args.classes else entry.classes
    report = Report()
    source = entry.source
    write_coco(
        output,
        tqdm(read(entry.reader, args.root, report, options), desc=args.name, unit="image", delay=3),
        classes,
        report,
        root=args.root,
        info={"description": f"{source.title}, {entry.name}", "url": source.homepage, "options": options},
        terms={"name": source.terms, "url": source.homepage},
    )
    return output


def chosen_filters(args: argparse.Namespace, entry: DataSet) -> dict[str, tuple[str, ...]]:
    """The filters of the command line; a ValueError for one that the data set does not have."""
    chosen = {key: tuple(getattr(args, key)) for key in FILTERS if getattr(args, key)}
    for key in chosen:
        if key not in entry.options and (key == "beta" or entry.reader != "scalabel"):
            of = "Foggy Cityscapes" if key == "beta" else "BDD100K"
            raise ValueError(f"--{key} is an option of {of}, not of {entry.name}: leave it out.")
    return chosen


if __name__ == "__main__":
    try:
        written = main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_data.py: error: {error}")
    print(f"Wrote {written}. To look at it: python tools/check_data.py --dataset {written.stem}")
