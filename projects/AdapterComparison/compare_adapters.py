#!/usr/bin/env python
"""Train several configurations with several seeds and compare them in weather they have not seen: see --help, or run

python projects/AdapterComparison/compare_adapters.py --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison
"""

import argparse
import datetime
import functools
import logging
import sys
from pathlib import Path

import soma_det  # (first: makes Detectron2 importable without its compiled extension)
import torch
from detectron2.utils.logger import setup_logger

from adapter_comparison import TrainingProcess, load_comparison, load_finished, plan_runs, train_all, write_report
from adapter_comparison.plan import require_classes, require_comparable, require_validation
from adapter_comparison.runs import is_finished
from soma_det.config import check_device
from soma_det.data import check_data_exists, register_from_config
from soma_det.utils.machine import count_cores, cpu_name
from soma_det.modeling.backbone.build import check_pretrained

TRAIN_NET = Path(__file__).resolve().parent / "train_net.py"

EXAMPLES = """
Train and compare all that the file lists; once more goes on where an interrupted comparison stopped:
    python projects/AdapterComparison/compare_adapters.py --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison

Some of them, with other seeds:
    python projects/AdapterComparison/compare_adapters.py --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison \\
        --only soma,lora,full --seeds 1,2,3,4,5

Bigger, on a GPU (settings go to every run, and a run's own in the file win over them):
    python projects/AdapterComparison/compare_adapters.py --config-file projects/AdapterComparison/configs/synthdrive.yaml --output output/comparison_gpu \\
        MODEL.DEVICE cuda MODEL.VIT.NAME vit_small_patch14_dinov2.lvd142m MODEL.VIT.WEIGHTS timm \\
        SOLVER.MAX_ITER 4000 SOLVER.STEPS "(3200, 3800)"

Faster on many cores: the same command in several terminals, with OMP_NUM_THREADS=1; each takes what no other has taken.

Each run is tools/train_net.py in a process of its own, in <output>/<name>/seed<seed>/, with its output in train.log.
A finished run is not trained again; one whose settings have changed since is an error. In <output>: results.md,
results.json and results.png, written anew after every run. How the file is written: projects/AdapterComparison/configs/synthdrive.yaml.

Ctrl-C lets the current training save what it has; the exit code is then 130, and 1 if a run has failed.
"""


def main(argv=None, train=None) -> int:
    """Compare; returns the exit code.

    Args:
        train: in place of a new process for each training, see :class:`~adapter_comparison.TrainingProcess`.
    """
    args = parse_args(argv)
    try:
        comparison = load_comparison(args.config_file, args.opts, args.seeds, args.reference, args.only)
        runs = prepare(comparison, args.output)
        failures, interrupted = {}, False
        try:
            command = TrainingProcess([sys.executable, str(TRAIN_NET)])
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


def prepare(comparison, output):
    """The runs, after everything was checked that can be before the first of them is trained."""
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
    return runs


def report(args, comparison, runs, failures) -> str:
    """Write what is known by now; the tables, or "" before the first run is finished."""
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


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train several configurations with several seeds on one source domain, and compare them in every "
        "weather: mean and standard deviation over seeds, paired differences with intervals, costs, and a chart.",
        epilog=f"Examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", required=True, help="what to compare, such as projects/AdapterComparison/configs/synthdrive.yaml")
    add("--output", required=True, help="folder of the runs and of the result files")
    add("--seeds", type=_numbers, default=(), metavar="1,2,3", help="in place of the file's")
    add("--reference", default="", metavar="NAME", help="what the others are paired with, in place of the file's")
    add("--only", type=_names, default=(), metavar="NAME,NAME", help="leave out all others but the reference")
    add("--keep-checkpoints", action="store_true", help="keep the models of runs that have been evaluated")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings of every run")
    return parser.parse_args(argv)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _names(text)]


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _log_once(name: str) -> None:
    """Every run's config says the same; once is enough."""
    seen = set()
    logging.getLogger(name).addFilter(lambda r: not (r.getMessage() in seen or seen.add(r.getMessage())))


if __name__ == "__main__":
    setup_logger(name="adapter_comparison", abbrev_name="compare")
    _log_once("soma_det.config")
    sys.exit(main())
