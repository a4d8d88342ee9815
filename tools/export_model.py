#!/usr/bin/env python
"""Export a detector to ONNX or torch.export for one size of images: see --help, or run

python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger

from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.detector import read_classes
from soma_det.engine.exported_predictor import ONNX, TORCH, FixedSizePredictor, open_exported
from soma_det.engine.fixed_size import OUTPUTS, default_size, fixed_size_detector
from soma_det.engine.onnx_export import calibration_images, export_onnx, quantize_onnx
from soma_det.engine.torch_export import export_torch, exportable
from soma_det.utils.images import read_image

FORMATS = {"onnx": ONNX, "torch": TORCH}

EXAMPLES = """
Examples:

For the size of the training crops, and compared with the detector itself on ten test images:
    python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth --check 10

For another size:
    python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth \\
        --size 384 640 --output detector.onnx

With int8 arithmetic in the backbone, and as a program of torch.export:
    python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth --int8
    python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth \\
        --format torch

Use it, without this project's training code in the graph:
    python -c "from soma_det import Detector; print(Detector('output/demo/model.onnx')('street.jpg').class_names)"
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write a trained detector, its adapter merged, to one file for one size of images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config.yaml of the run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint or exported detector of the run")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: %(default)s")
    parser.add_argument("--int8", action="store_true", help="ONNX with int8 in the backbone; needs the training images")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="pixels (default: the crop, made to fit)")
    parser.add_argument("--output", metavar="FILE", help="default: model.onnx, .pt2 or model_int8.onnx by the weights")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="compare on N test images of the source")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    if args.int8 and args.format != "onnx":
        parser.error(f"--int8 is for --format onnx, not for {args.format}")
    if args.int8 and args.check:
        parser.error("--check looks for equal numbers, which int8 has not: measure its AP by benchmark.py infer --run")
    suffix = FORMATS[args.format]
    name = f"model_int8{suffix}" if args.int8 else f"model{suffix}"
    args.output = args.output or str(Path(args.weights).with_name(name))
    if Path(args.output).suffix != suffix:
        parser.error(f"--output is {args.output}: for --format {args.format} its name must end in {suffix}")
    return args


def main(args: argparse.Namespace) -> str:
    """Export, compare where asked to, and say what was written."""
    words = [*args.opts, "MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
    cfg = setup_cfg(args.config_file, words)
    size = tuple(args.size or default_size(cfg))
    export(cfg, args.output, size, read_classes(Path(args.weights), cfg), args.format, args.int8)
    megabytes = os.path.getsize(args.output) / 1e6
    text = f"Wrote {args.output} ({megabytes:.1f} MB) for images of {size[0]} x {size[1]} pixels."
    return f"{text}\n{compare(cfg, args.output, size, args.check)}" if args.check else text


def export(
    cfg: CfgNode, path: str, size: Sequence[int], classes: Sequence[str], file_format: str = "onnx", int8: bool = False
) -> None:
    """Write a detector in one of FORMATS."""
    if file_format == "torch":
        export_torch(cfg, path, size, classes)
    elif not int8:
        export_onnx(cfg, path, size, classes)
    else:
        register_from_config(cfg)
        check_data_exists(cfg.DATASETS.TRAIN)
        with tempfile.TemporaryDirectory() as folder:
            whole = str(Path(folder, "model.onnx"))
            export_onnx(cfg, whole, size, classes)
            quantize_onnx(whole, path, calibration_images(cfg, FixedSizePredictor(*open_exported(whole))))


def same_order(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> list[np.ndarray]:
    """``found`` in the order of ``expected``, each (boxes, scores, classes) of equally many detections.

    Rounding can swap two detections of nearly equal confidence: each one goes to the place of the one most like it.
    """
    from scipy.optimize import linear_sum_assignment  # of the extra "export"

    boxes, scores, classes = (np.asarray(part, dtype=float) for part in found)
    other_boxes, other_scores, other_classes = (np.asarray(part, dtype=float) for part in expected)
    cost = np.abs(boxes[None] - other_boxes[:, None]).max(axis=2, initial=0) + np.abs(scores - other_scores[:, None])
    _, order = linear_sum_assignment(cost + 1e6 * (classes != other_classes[:, None]))
    return [part[order] for part in found]


def compare(cfg: CfgNode, path: str, size: Sequence[int], count: int) -> str:
    """The largest differences from the detector itself on test images, and both times."""
    register_from_config(cfg)
    check_data_exists([cfg.DATASETS.SOURCE_TEST])
    described, run = open_exported(path)
    prepare, eager = FixedSizePredictor(described, run).prepare, fixed_size_detector(cfg, size)
    eager = exportable(eager) if described.outputs != OUTPUTS else eager
    largest, unequal, times = dict.fromkeys(described.outputs, 0.0), 0, [0.0, 0.0]
    files = [record["file_name"] for record in DatasetCatalog.get(cfg.DATASETS.SOURCE_TEST)[:count]]
    for file in files:
        image = prepare(read_image(file, "BGR"))[0]
        start = time.perf_counter()
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in eager(torch.from_numpy(image))]
        middle = time.perf_counter()
        found = run(image)
        times = [times[0] + middle - start, times[1] + time.perf_counter() - middle]
        if len(found[0]) != len(expected[0]):
            unequal += 1
            continue
        if described.outputs == OUTPUTS:
            found = same_order(found, expected)
        for name, mine, theirs in zip(described.outputs, found, expected, strict=True):
            largest[name] = max(largest[name], float(np.abs(mine - theirs).max(initial=0)))
    torch_ms, file_ms = (1000 * seconds / len(files) for seconds in times)
    differences = ", ".join(f"{name} {value:.2g}" for name, value in largest.items() if name != "classes")
    return (
        f"Against the detector itself on {len(files)} images, the largest differences: {differences} (boxes in "
        f"pixels); {unequal} images have another number of detections. {torch_ms:.0f} ms an image in torch, "
        f"{file_ms:.0f} by the file."
    )


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        print(main(arguments))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"export_model.py: error: {error}")
