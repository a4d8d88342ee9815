"""The peak memory of an evaluation of few and of many images."""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

import soma_det
from benchmarks.memory import peak_mib
from benchmarks.report import Limit, Report
from benchmarks.tiny import register, tiny_cfg, write_images

NAME = "memory_test"
FILES = 8  # different images
LIMIT = 1.1  # times the peak, for ten times the images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many images, and how many detections in each."""
    parser.add_argument("--images", type=int, nargs=2, default=[500, 5000], help="default: 500 5000")
    parser.add_argument("--detections", type=int, default=100, help="in each image, at most (default: %(default)s)")


def run(args: argparse.Namespace) -> Report:
    """Evaluate each number of images in a process of its own: the peak of a process never falls."""
    if args.images[0] >= args.images[1]:
        raise ValueError(f"--images is {args.images}: give the smaller number first.")
    report = Report("Peak memory of an evaluation by a tiny detector", vars(args))
    report.rows = [measure_apart(count, args.detections, args.seed) for count in args.images]
    few, many = report.rows
    parts = [part for part in few if part.endswith("MiB")]
    times = [
        (f"peak of many images, {part.split(',')[0]}, times that of few", many[part] / few[part]) for part in parts
    ]
    report.limits = [Limit(name, value, LIMIT) for name, value in times]
    report.notes = [f"The same {FILES} images again and again, under ids of their own."]
    return report


def measure_apart(count: int, detections: int, seed: int) -> dict[str, float]:
    """:func:`measure` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, count, detections, seed).result()


def measure(count: int, detections: int, seed: int) -> dict[str, float]:
    """Evaluate ``count`` images with a detector of random weights; the peaks so far of this process, MiB."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        register(NAME, write_images(Path(folder), FILES, seed), count)
        settings = {"DATALOADER.NUM_WORKERS": 0, "TEST.DETECTIONS_PER_IMAGE": detections}
        cfg = tiny_cfg(Path(folder), "", NAME, settings)
        model = soma_det.Trainer.build_model(cfg).eval()
        before, watch = peak_mib(), PeakAfterInference()
        soma_det.Trainer.test(cfg, model, [DatasetEvaluators([watch, soma_det.Trainer.build_evaluator(cfg, NAME)])])
        peaks = {"before, MiB": before, "inference, MiB": watch.peak, "scoring, MiB": peak_mib()}
        return {"images": count, "detections": watch.detections, **peaks}


class PeakAfterInference(DatasetEvaluator):
    """Notes the peak of memory before the evaluators after it score."""

    def __init__(self) -> None:
        self.peak, self.detections = 0.0, 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the detections."""
        self.detections += sum(len(output["instances"]) for output in outputs)

    def evaluate(self) -> None:
        """Note the peak."""
        self.peak = peak_mib()
