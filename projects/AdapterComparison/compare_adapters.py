#!/usr/bin/env python
"""Train several configurations with several seeds and compare them in unseen weather: see --help, or run

python projects/AdapterComparison/compare_adapters.py \\
    --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison
"""

import argparse
import datetime
import functools
import logging
import os
import sys
from pathlib import Path

# Idle OpenMP threads spin by default. Beside one busy core that makes a training step 1.5 times slower; waiting costs
# nothing. The trainings inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from detectron2.utils.logger import setup_logger

import soma_det  # (first: makes Detectron2 importable without its compiled extension)
from adapter_comparison import (
    Comparison,
    Run,
    TrainingProcess,
    load_comparison,
    load_finished,
    plan_runs,
    train_all,
    write_report,
)
from adapter_comparison.plan import require_classes, require_comparable, require_validation
from adapter_comparison.process import Train
from adapter_comparison.runs import is_finished
from soma_det.config import check_device
from soma_det.data import check_data_exists, register_from_config
from soma_det.engine.output_dir import check_writable
from soma_det.modeling.backbone.build import check_pretrained
from soma_det.utils.machine import count_cores, cpu_name

TOOLS = Path(__file__).resolve().parents[2] / "tools"

EXAMPLES = """
Train and compare all runs that the file lists. The same command again goes on after an interruption:
    python projects/AdapterComparison/compare_adapters.py \\
        --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison

Some of them, with more seeds:
    python projects/AdapterComparison/compare_adapters.py \\
        --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison \\
        --only soma,lora,full --seeds 1,2,3,4,5

Larger, on a GPU (settings of every run; those of a single run in the file take precedence):
    python projects/AdapterComparison/compare_adapters.py \\
        --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison_gpu \\
        MODEL.DEVICE cuda MODEL.VIT.NAME vit_small_patch14_dinov2.lvd142m MODEL.VIT.WEIGHTS timm \\
        SOLVER.MAX_ITER 4000 SOLVER.STEPS "(3200, 3800)"

Faster on many cores: start the same command in several terminals, with OMP_NUM_THREADS=1. They share the runs.

Each run is tools/train_net.py, or the command that the file names, in its own process. It writes to
<output>/<name>/seed<seed>/, its output to train.log there. A finished run is not trained again, and a finished run with
other settings is an error. After every run results.md, results.json and results.png in <output> are updated.
projects/AdapterComparison/configs/synthdrive.yaml explains the format of the file.

Ctrl-C lets the current training save its state. The exit code is then 130; it is 1 if a run has failed.
"""


def main(argv: list[str] | None = None, train: Train | None = None) -> int:
    """Compare; returns the exit code.

    Args:
        train: replaces :class:`~adapter_comparison.TrainingProcess`, which starts a process for each training.
    """
    args = parse_args(argv)
    try:
        comparison = load_comparison(args.config_file, args.opts, args.seeds, args.reference, args.only)
        runs = prepare(comparison, args.output)
        failures: dict[Run, str] = {}
        interrupted = False
        try:
            command = TrainingProcess([sys.executable, str(TOOLS / comparison.command)])
            write = functools.partial(report, args, comparison, runs, failures)
            train_all(runs, train or command, failures, write, args.keep_checkpoints)
        except KeyboardInterrupt:
            interrupted = True
        tables = report(args, comparison, runs, failures)
    except (ValueError, OSError) as error:
        raise SystemExit(f"compare_adapters.py: {error}") from error
    if tables:
        print(f"\n{tables}\n\nAlso in {args.output}: results.md, results.json, results.png")
    for run, why in failures.items():
        print(f"FAILED {run}: {why}")
    if interrupted:
        print("Interrupted; the same command goes on from here.")
    return 130 if interrupted else int(bool(failures))


def prepare(comparison: Comparison, output: str) -> list[Run]:
    """All runs. Raises a ValueError or OSError for every mistake that can be found before the first training."""
    runs = plan_runs(comparison, output)
    for run in runs:
        register_from_config(run.cfg)
    check_device(runs[0].cfg)
    require_comparable({run.name: run.cfg for run in runs})
    require_classes(runs[0].cfg, comparison.classes)
    require_validation(runs[0].cfg, comparison.validation)
    check_data_exists([*runs[0].cfg.DATASETS.TRAIN, *runs[0].cfg.DATASETS.TEST])
    for run in runs:
        if not is_finished(run):
            check_pretrained(run.cfg)
    check_writable(output)
    return runs


def report(args: argparse.Namespace, comparison: Comparison, runs: list[Run], failures: dict[Run, str]) -> str:
    """Write the result files of the runs so far. Returns the tables, or "" before the first run is finished."""
    finished = load_finished(runs)
    if not finished:
        return ""
    cfg = finished[0].run.cfg
    missing = [run for run in runs if not is_finished(run) and run not in failures]
    metadata = {
        "comparison": args.config_file,
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "reference": comparison.reference,
        "seeds": ", ".join(map(str, comparison.seeds)),
        "training sets": ", ".join(cfg.DATASETS.TRAIN),
        "iterations": f"{cfg.SOLVER.MAX_ITER:,} of {cfg.SOLVER.IMS_PER_BATCH} images",
        "machine": f"{cpu_name()}, {count_cores()} cores, device {cfg.MODEL.DEVICE}",
        "soma_det": soma_det.__version__,
        "torch": torch.__version__,
    }
    return write_report(args.output, comparison, finished, failures, missing, metadata)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train several configurations with several seeds on one source domain, and compare them in every "
        "weather: mean and standard deviation over seeds, paired differences with intervals, costs, and a chart.",
        epilog=f"Examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config-file",
        required=True,
        help="what to compare, such as projects/AdapterComparison/configs/synthdrive.yaml",
    )
    add("--output", required=True, help="folder of the runs and of the result files")
    add("--seeds", type=_numbers, default=(), metavar="1,2,3", help="in place of the file's")
    add(
        "--reference",
        default="",
        metavar="NAME",
        help="the run that the others are compared with, in place of the file's",
    )
    add("--only", type=_names, default=(), metavar="NAME,NAME", help="train these and the reference only")
    add("--keep-checkpoints", action="store_true", help="do not delete the checkpoints of evaluated runs")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings of every run")
    return parser.parse_args(argv)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _names(text)]


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _log_once(name: str) -> None:
    """Show each message of a logger once: the configs of all runs give the same ones."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        known = record.getMessage() in seen
        seen.add(record.getMessage())
        return not known

    logging.getLogger(name).addFilter(is_new)


if __name__ == "__main__":
    setup_logger(name="adapter_comparison", abbrev_name="compare")
    _log_once("soma_det.config")
    sys.exit(main())
