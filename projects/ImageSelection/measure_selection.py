#!/usr/bin/env python
"""Measure whether images selected for labelling are worth more than random ones: see --help, or run

python projects/ImageSelection/measure_selection.py --output output/image_selection
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from image_selection.data import link_domains
from image_selection.report import write_report
from image_selection.rounds import Call, Plan, call_tool, run_seed
from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.data.datasets.register import weather_root
from soma_det.engine.output_dir import check_writable
from soma_det.utils.files import write_text

CONFIG_FILE, POOL = "configs/demo.yaml", "synthdrive_night_rainy_train"

EXAMPLES = """
Data with unlabelled images of a rainy night, then three seeds of: train on clear days, label 30 images of that night,
train again with them; the same with random images that have as many boxes. Hours on two CPU cores; the same command
goes on after an interruption:
    python projects/SynthDrive/make_synthdrive.py --output datasets/synthdrive_night --train 600 \\
        --train-domains daytime_clear night_rainy
    python projects/ImageSelection/measure_selection.py --output output/image_selection \\
        DATASETS.WEATHER.ROOT datasets/synthdrive_night SOLVER.MAX_ITER 400 SOLVER.STEPS "(320, 380)"

A second round, whose margins also take the change between the models of two rounds into account:
    python projects/ImageSelection/measure_selection.py --output output/image_selection --rounds 2 \\
        DATASETS.WEATHER.ROOT datasets/synthdrive_night SOLVER.MAX_ITER 400 SOLVER.STEPS "(320, 380)"
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Label images by tools/select_images.py or at random, train with them, and compare.",
        epilog="Examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--config-file", default=CONFIG_FILE, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--pool", default=POOL, metavar="NAME", help="split to label images of (default: %(default)s)")
    parser.add_argument(
        "--images", type=int, default=30, metavar="N", help="to select in a round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="times a labelled image counts (default: %(default)s)"
    )
    parser.add_argument("--seeds", default="1,2,3", help="(default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides for every training")
    args = parser.parse_args(argv)
    try:
        args.seeds = [int(word) for word in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds is {args.seeds!r}: give whole numbers with commas, such as 1,2,3")
    if min(args.images, args.rounds, args.repeat) < 1:
        parser.error("--images, --rounds and --repeat are at least 1")
    return args


def main(args: argparse.Namespace, call: Call = call_tool) -> str:
    """Train what is not trained yet; returns the table.

    Args:
        call: runs a tool.
    """
    cfg = setup_cfg(args.config_file, args.opts)
    register_from_config(cfg)
    plan, target = make_plan(args, cfg)
    check_unchanged(args, plan)
    for seed in args.seeds:
        run_seed(plan, seed, call, lambda: write_report(plan, args.seeds, target))
    return write_report(plan, args.seeds, target)


def make_plan(args: argparse.Namespace, cfg: CfgNode) -> tuple[Plan, str]:
    """The plan, and the test split that is scored; checks all that can be wrong, and makes the folder of data."""
    if args.pool not in DatasetCatalog:
        raise ValueError(f"--pool {args.pool} is not a split of DATASETS.WEATHER in {args.config_file}.")
    domain = MetadataCatalog.get(args.pool).domain
    target = f"{cfg.DATASETS.WEATHER.PREFIX}_{domain}_test"
    if not args.pool.endswith("_train") or len(cfg.DATASETS.TRAIN) != 1 or target not in cfg.DATASETS.TEST:
        raise ValueError(
            f"--pool is {args.pool}: name the training split of a weather whose {target} is in DATASETS.TEST, and one "
            "source in DATASETS.TRAIN."
        )
    check_data_exists([args.pool, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    check_writable(str(args.output))
    boxes = {record["image_id"]: len(record["annotations"]) for record in DatasetCatalog.get(args.pool)}
    weather, root = cfg.DATASETS.WEATHER, args.output / "data"
    used = {MetadataCatalog.get(name).domain for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    domains = [of for of in weather.DOMAINS if of in used]
    lists = link_domains(weather_root(weather.ROOT), domains, domain, root)
    opts = (*args.opts, "DATASETS.WEATHER.ROOT", str(root), "DATASETS.WEATHER.DOMAINS", repr(domains))
    source = cfg.DATASETS.TRAIN[0]
    sizes = {"images": args.images, "rounds": args.rounds, "repeat": args.repeat}
    return Plan(args.config_file, opts, source, args.pool, lists, boxes, output=args.output, **sizes), target


def check_unchanged(args: argparse.Namespace, plan: Plan) -> None:
    """Raise a ValueError where the folder holds a measurement with other settings; more rounds and seeds are fine."""
    path = args.output / "settings.json"
    settings = {"config_file": args.config_file, "pool": args.pool, "images": args.images, "repeat": args.repeat}
    settings |= {"opts": list(args.opts), "boxes": sum(plan.boxes.values())}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        raise ValueError(f"{args.output} was made with other {', '.join(changed)}: choose another --output.")
    write_text(path, json.dumps(settings, indent=2) + "\n")


def run(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = parse_args(None if argv is None else list(argv))
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        print(main(args))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"measure_selection.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from here.")
    print(f"\nAlso in {args.output}: results.md, results.json")


if __name__ == "__main__":
    run()
