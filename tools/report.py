#!/usr/bin/env python
"""Make one page of what runs have found, missed and confused: see --help, or run

python tools/report.py output/demo
"""

import argparse
import re
import sys
from pathlib import Path

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
from detectron2.utils.logger import setup_logger

from reporting.page import render
from reporting.run import load_runs
from soma_det.utils.files import write_text

EXAMPLES = """
Examples:

A run, in output/demo/report.html:
    python tools/report.py output/demo

Two runs side by side:
    python tools/report.py output/soma output/lora --output output/soma_lora.html

The data have moved since:
    python tools/report.py output/demo DATASETS.WEATHER.ROOT /data/synthdrive
"""
REPORT_FILE = "report.html"
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")  # of a config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make one HTML page, without scripts or links, of the results of runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs="+", metavar="FOLDER", help="runs' OUTPUT_DIR; after them KEY VALUE overrides of their configs"
    )
    parser.add_argument("--output", metavar="FILE", help=f"(default: {REPORT_FILE} in the first folder)")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="C",
        help="of detections in images and the confusion matrix, 0 to 1 (%(default)s)",
    )
    parser.add_argument(
        "--images", type=int, default=2, metavar="N", help="best and worst images of each weather, each (%(default)s)"
    )
    args = parser.parse_intermixed_args(argv)
    if not 0 <= args.confidence_threshold <= 1 or args.images < 0:
        parser.error("--confidence-threshold is from 0 to 1, and --images a number from 0")
    first = next((i for i, w in enumerate(args.words) if KEY.fullmatch(w) and not Path(w).is_dir()), len(args.words))
    args.runs, args.opts = [Path(word) for word in args.words[:first]], args.words[first:]
    if not args.runs:
        parser.error("name the folder of a run before KEY VALUE")
    args.output = Path(args.output) if args.output else args.runs[0] / REPORT_FILE
    return args


def main(args: argparse.Namespace) -> list[str]:
    """Write the page; returns what is missing in it."""
    runs = load_runs(args.runs, args.opts, args.confidence_threshold, args.images)
    write_text(args.output, render(runs, args.confidence_threshold))
    return [f"{run.name}: {sentence}" for run in runs for sentence in run.missing]


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        left_out = main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: error: {error}")
    print("\n".join([*left_out, f"Wrote {arguments.output}."]))
