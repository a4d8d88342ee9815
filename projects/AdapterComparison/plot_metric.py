#!/usr/bin/env python
"""Draw what the runs of a comparison logged over their iterations: see --help, or run

python projects/AdapterComparison/plot_metric.py output/uda_night_rainy pseudo_labels/boxes
"""

import argparse
from pathlib import Path

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
from adapter_comparison.curves import draw_courses, read_courses
from soma_det.evaluation.chart import LINE_COLORS

EXAMPLES = f"""
Examples:

How many boxes the teachers of a self-training label in an image:
    python projects/AdapterComparison/plot_metric.py output/uda_night_rainy pseudo_labels/boxes

When the heads begin to tell objects from background, of some configurations:
    python projects/AdapterComparison/plot_metric.py output/comparison fast_rcnn/fg_cls_accuracy --only soma,lora,full

A name that no run has logged lists those that there are. More than {len(LINE_COLORS)} configurations are told apart by
dashes too.
"""


def main(argv: list[str] | None = None) -> None:
    """Draw; prints the picture's path."""
    args = parse_args(argv)
    try:
        courses = read_courses(args.output, args.metric, [name for name in args.only.split(",") if name])
        path = Path(args.picture or Path(args.output) / f"{args.metric.replace('/', '_')}.png")
        draw_courses(courses, args.metric, path)
    except (ValueError, OSError) as error:
        raise SystemExit(f"plot_metric.py: {error}") from error
    print(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Draw one logged metric of all runs of a comparison over the iterations: the mean over seeds, and "
        "each seed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", help="folder of compare_adapters.py, finished or not")
    parser.add_argument("metric", help="a name in the runs' metrics.json, such as total_loss")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="these configurations; all without it")
    parser.add_argument("--picture", metavar="PNG", help="file to write; <output>/<metric>.png without it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
