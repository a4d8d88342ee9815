#!/usr/bin/env python
"""Evaluate a detector on corrupted images: see --help, or run

python tools/evaluate_corruptions.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import get_detection_dataset_dicts, trivial_batch_collator
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch.utils.data import DataLoader

from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.data.dataset_mapper import WeatherMapper
from soma_det.data.transforms.augmentation import build_test_augmentation
from soma_det.engine import Trainer, load_model
from soma_det.engine.output_dir import LockedFolderError, check_writable, locked_output_dir
from soma_det.evaluation.chart import draw_panels
from soma_det.evaluation.corruptions import BENCHMARK, KINDS, NAMES, SEVERITIES, WEATHER, Corruption, check_corruption
from soma_det.evaluation.results import CHART_FILE, RESULTS_FILE, TABLES_FILE, load_results
from soma_det.utils.files import atomic_path, write_text

EXAMPLES = """
Examples:

All 15 corruptions at five severities and the simulated weathers, on the source's test split. The same command goes on
after an interruption, and in a second terminal it shares the work:
    python tools/evaluate_corruptions.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth

A part of it, on another split:
    python tools/evaluate_corruptions.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth \\
        --corruptions fog snow motion_blur --severities 1 3 5 --split synthdrive_daytime_clear_test
"""
CLEAN = "clean"
METRICS = {"VOC AP50": ("voc", "AP50"), "COCO AP": ("bbox", "AP")}

NOTES = """\
- mPC: mean performance under corruption, over the 15 corruptions and five severities; rPC: mPC in percent of the clean
  score (Michaelis et al., arXiv 1907.07484). Both need all 75: nothing that was not evaluated counts as zero.
- An image is corrupted as its file has it, before it is resized, in the channel order of INPUT.FORMAT, and always in
  the same way.
- Simulated weathers are this project's (soma_det.weather, with a guessed depth) and count neither for mPC nor for rPC.
"""

logger = logging.getLogger("soma_det.corruptions")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Evaluate a detector on corrupted images of a test split.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config.yaml of the run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint or exported detector of the run")
    parser.add_argument("--split", metavar="NAME", help="registered split (default: DATASETS.SOURCE_TEST)")
    parser.add_argument("--corruptions", nargs="+", default=list(NAMES), metavar="NAME", help="default: all")
    parser.add_argument(
        "--severities", nargs="+", type=int, default=list(SEVERITIES), metavar="N", help="default: 1 to 5"
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: the folder corruptions beside the weights")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    args.output = Path(args.output or Path(args.weights).with_name("corruptions"))
    return args


def trainer_for(corruption: Corruption | None) -> type[Trainer]:
    """A Trainer whose test images are corrupted, one at a time; None for clean ones."""

    class CorruptedTrainer(Trainer):
        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
            resize = build_test_augmentation(min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST)
            augmentations = [*([corruption] if corruption else []), *resize]
            mapper = WeatherMapper(is_train=False, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)
            records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
            dataset = MapDataset(DatasetFromList(records, copy=False), mapper)
            return DataLoader(dataset, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=trivial_batch_collator)

    return CorruptedTrainer


def main(args: argparse.Namespace) -> str:
    """Evaluate what is not evaluated yet, and return the table of all that is."""
    jobs = plan(args.corruptions, args.severities)
    cfg = setup_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    register_from_config(cfg)
    split = args.split or cfg.DATASETS.SOURCE_TEST
    if not split:
        raise ValueError("The config has no DATASETS.SOURCE_TEST: name a split with --split.")
    check_data_exists([split])
    check_writable(str(args.output))
    cfg = restrict(cfg, split)
    model, start, done = load_model(cfg), time.monotonic(), 0
    text = report(read(args.output, jobs, split), args, split)
    for number, (name, severity) in enumerate(jobs, 1):
        folder = args.output / name / str(severity)
        try:
            with locked_output_dir(str(folder)):
                if (folder / RESULTS_FILE).exists():
                    continue
                left = (time.monotonic() - start) / done * (len(jobs) - number + 1) if done else 0
                words = timedelta(seconds=round(left))
                logger.info("%s %d, %d of %d; %s to go", name, severity, number, len(jobs), words)
                evaluate(cfg, model, name, severity, folder)
        except LockedFolderError:  # another process evaluates it
            continue
        done += 1
        text = report(read(args.output, jobs, split), args, split)
    return text


def plan(corruptions: Sequence[str], severities: Sequence[int]) -> list[tuple[str, int]]:
    """(corruption, severity) in turn, the clean images first."""
    jobs = [(CLEAN, 0)]
    for name in corruptions:
        for severity in (1,) if name in WEATHER else severities:
            check_corruption(name, severity)
            jobs.append((name, severity))
    return jobs


def restrict(cfg: CfgNode, split: str) -> CfgNode:
    """The config with one split to test."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST, cfg.DATASETS.SOURCE_TEST = (split,), split
    cfg.freeze()
    return cfg


def evaluate(cfg: CfgNode, model, name: str, severity: int, folder: Path) -> None:
    """Score one corruption into its folder."""
    corruption = None if name == CLEAN else Corruption(name, severity, cfg.INPUT.FORMAT)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    trainer_for(corruption).test(cfg, model)


def read(output: Path, jobs: Sequence[tuple[str, int]], split: str) -> dict[tuple[str, int], dict[str, float]]:
    """(corruption, severity) -> metric -> score, of what is evaluated."""
    scores = {}
    for job in jobs:
        folder = output / job[0] / str(job[1])
        if (folder / RESULTS_FILE).exists():
            result = load_results(folder)["results"].get(split)
            if result is None:
                raise ValueError(f"{folder} was evaluated on another split than {split}: use another --output.")
            scores[job] = {metric: result[task][key] for metric, (task, key) in METRICS.items()}
    return scores


def summarize(scores: Mapping[tuple[str, int], Mapping[str, float]], metric: str) -> dict[str, float | None]:
    """Clean score, mPC and rPC in percent; None for what cannot be said yet."""
    clean = scores.get((CLEAN, 0), {}).get(metric)
    every = [(name, severity) for name in BENCHMARK for severity in SEVERITIES]
    if any(job not in scores for job in every):
        return {"clean": clean, "mPC": None, "rPC": None}
    mpc = sum(scores[job][metric] for job in every) / len(every)
    return {"clean": clean, "mPC": mpc, "rPC": 100 * mpc / clean if clean else None}


def report(scores: Mapping[tuple[str, int], Mapping[str, float]], args: argparse.Namespace, split: str) -> str:
    """Write results.json, results.md and results.png; return the tables as text."""
    names = list(dict.fromkeys(name for name, _ in scores if name != CLEAN))
    levels = sorted({severity for name, severity in scores if name != CLEAN})
    summary = {metric: summarize(scores, metric) for metric in METRICS}
    rows = []
    for name in names:
        cells = [scores.get((name, level), {}).get("VOC AP50") for level in levels]
        known = [cell for cell in cells if cell is not None]
        rows.append([name, *map(_cell, [*cells, sum(known) / len(known)])])
    top = [[metric, *map(_cell, of.values())] for metric, of in summary.items()]
    tables = {
        "Summary": (top, ["", "clean", "mPC", "rPC, %"]),
        "VOC AP50 by corruption and severity": (rows, ["corruption", *map(str, levels), "mean of these"]),
    }
    plain = {f"{name}/{severity}": dict(of) for (name, severity), of in scores.items()}
    content = {"split": split, "weights": args.weights, "summary": summary, "scores": plain}
    write_text(args.output / RESULTS_FILE, json.dumps(content, indent=2) + "\n")
    parts = [f"# Under corruption\n\n- split: `{split}`\n- weights: {args.weights}"]
    parts += [f"## {head}\n\n{_table(*table, 'github')}" for head, table in tables.items()]
    write_text(args.output / TABLES_FILE, "\n\n".join([*parts, f"![VOC AP50 by severity]({CHART_FILE})", NOTES]))
    _draw(scores, names, args.output / CHART_FILE)
    return "\n\n".join(f"{head}\n{_table(*table, 'simple')}" for head, table in tables.items())


def _draw(scores: Mapping[tuple[str, int], Mapping[str, float]], names: Sequence[str], path: Path) -> None:
    """A panel for each kind of the benchmark's corruptions, over the severities that all have, 0 being clean."""
    benchmark = [name for name in names if name in BENCHMARK]
    levels = [level for level in SEVERITIES if benchmark and all((name, level) in scores for name in benchmark)]
    if not levels or (CLEAN, 0) not in scores:
        return
    clean = scores[CLEAN, 0]["VOC AP50"]
    panels: dict[str, dict[str, list[float]]] = {}
    for kind, members in KINDS.items():
        for name in filter(benchmark.__contains__, members):
            curve = [clean, *(scores[name, level]["VOC AP50"] for level in levels)]
            panels.setdefault(kind, {})[name.replace("_", " ")] = curve
    with atomic_path(path) as temporary:
        draw_panels([0, *levels], panels, temporary, "severity; 0: clean")


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], tablefmt: str) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt=tablefmt, colalign=align if rows else None, disable_numparse=True)


def _cell(score: float | None) -> str:
    return "-" if score is None or math.isnan(score) else f"{score:.1f}"


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        print(main(arguments))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"evaluate_corruptions.py: error: {error}")
    print(f"\nAlso in {arguments.output}.")
