"""A trained detector by eager torch, torch.compile, onnxruntime and OpenVINO, in fp32 and int8: time and AP."""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from benchmarks.report import Limit, Report
from benchmarks.timing import Timing, interleave, ratio
from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.detector import CONFIG_FILE, find_weights, read_classes
from soma_det.engine.exported_predictor import ExportedPredictor, FixedSizePredictor, Run
from soma_det.engine.fixed_size import Description, TensorDetector, default_size, fixed_size_detector
from soma_det.engine.onnx_export import calibration_images, export_onnx, quantize_onnx
from soma_det.evaluation.build import build_evaluator
from soma_det.utils.images import read_image

EAGER, COMPILED, OPENVINO = "eager torch", "torch.compile", "openvino"
RUNTIMES = ("onnxruntime", OPENVINO)
GOAL = 1.5  # times as fast as eager torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and what it is measured on."""
    group = parser.add_argument_group("a trained detector by several runtimes, on the CPU; --rounds is of the times")
    group.add_argument("--run", metavar="FOLDER", help="of a finished training")
    group.add_argument("--split", metavar="NAME", help="registered split (default: DATASETS.SOURCE_TEST of the run)")
    group.add_argument("--images", type=int, default=0, help="the first of the split, for AP (default: all)")
    group.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")


def run(args: argparse.Namespace) -> Report:
    """Score every contestant on the same images, then time them in turn."""
    cfg = load_config(args)
    split = first_images(args.split or cfg.DATASETS.SOURCE_TEST, args.images)
    records = DatasetCatalog.get(split)
    with tempfile.TemporaryDirectory() as folder:
        contestants = build_contestants(cfg, Path(folder))
        scores = {name: score(predictor, split) for name, predictor in contestants.items()}
        steps = {name: [("run", turns(predictor, records))] for name, predictor in contestants.items()}
        timed = interleave(steps, args.rounds, warmup=2, device="cpu", seed=args.seed)
    timings = {name: parts["run"] for name, parts in timed.items()}
    report = Report("Inference of a trained detector, one image at a time, without reading and resizing", vars(args))
    report.rows = [row(name, timings[name], timings[EAGER, "fp32"]) | scores[name] for name in contestants]
    best = max(1 / ratio(timing, timings[EAGER, "fp32"]) for timing in timings.values())
    report.limits = [Limit("times as fast as eager torch, the best", best, GOAL, at_most=False)]
    report.notes = [f"AP on {len(records)} images of {split}, {next(iter(contestants.values())).size} pixels."]
    if find_spec(OPENVINO) is None:
        report.notes.append("OpenVINO is not installed: pip install 'soma_det[openvino]'.")
    return report


def load_config(args: argparse.Namespace) -> CfgNode:
    """The run's config, its weights named and its data registered and there."""
    weights = find_weights(Path(args.run))
    words = [*args.opts, "MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
    cfg = setup_cfg(str(weights.with_name(CONFIG_FILE)), words)
    register_from_config(cfg)
    check_data_exists([args.split or cfg.DATASETS.SOURCE_TEST, *cfg.DATASETS.TRAIN])
    return cfg


def first_images(split: str, count: int) -> str:
    """The name of a split of the first images of another one; 0 stands for all of them."""
    if not count:
        return split
    name = f"{split}_first_{count}"
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, lambda: DatasetCatalog.get(split)[:count])
        MetadataCatalog.get(name).thing_classes = MetadataCatalog.get(split).thing_classes
    return name


def build_contestants(cfg: CfgNode, folder: Path) -> dict[tuple[str, str], FixedSizePredictor]:
    """(runtime, precision) -> predictor; the exported files are written to the folder."""
    size = default_size(cfg)
    described = Description(size, cfg.INPUT.FORMAT, read_classes(Path(cfg.MODEL.WEIGHTS), cfg))
    eager, compiled = fixed_size_detector(cfg, size), fixed_size_detector(cfg, size)
    compiled.detector.backbone.compile()  # the heads, where shapes follow from the image, would be compiled in pieces
    found = {
        (EAGER, "fp32"): FixedSizePredictor(described, run_of(eager)),
        (COMPILED, "fp32"): FixedSizePredictor(described, run_of(compiled)),
    }
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8")}
    export_onnx(cfg, files["fp32"], size, described.classes)
    quantize_onnx(files["fp32"], files["int8"], calibration_images(cfg, found[EAGER, "fp32"]))
    for runtime, (precision, file) in itertools.product(RUNTIMES, files.items()):
        if find_spec(runtime):
            found[runtime, precision] = ExportedPredictor(file, runtime)
    return found


def run_of(model: TensorDetector) -> Run:
    """What runs a module as exported files are run."""

    @torch.no_grad()
    def run_model(image: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in model(torch.from_numpy(image))]

    return run_model


def score(predictor: FixedSizePredictor, split: str) -> dict[str, float]:
    """AP of a predictor on a registered split, by VOC's and by COCO's rules."""
    evaluator = build_evaluator(split)
    evaluator.reset()
    for record in DatasetCatalog.get(split):
        found = predictor(read_image(record["file_name"], "BGR"))
        evaluator.process([record], [{"instances": found}])
    results = evaluator.evaluate()
    return {"VOC AP50": results["voc"]["AP50"], "AP": results["bbox"]["AP"]}


def turns(predictor: FixedSizePredictor, records: list[dict]) -> Callable[[], object]:
    """A function that runs the detector on the next image each time, read and resized beforehand."""
    images = [predictor.prepare(read_image(record["file_name"], "BGR"))[0] for record in records[:20]]
    following = itertools.cycle(images)
    return lambda: predictor.run(next(following))


def row(name: tuple[str, str], timing: Timing, eager: Timing) -> dict:
    """A line of the table, without AP."""
    low, high = timing.quartiles
    times = {"ms": 1e3 * timing.median, "quartiles ms": f"{1e3 * low:.4g} to {1e3 * high:.4g}"}
    return {"runtime": name[0], "precision": name[1], **times, "times eager's speed": 1 / ratio(timing, eager)}
