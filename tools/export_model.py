#!/usr/bin/env python
"""Export a detector to ONNX for one size of images: see --help, or run

python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth
"""

import argparse
import os
import sys
import time
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.detector import read_classes
from soma_det.engine.onnx_export import STEP, OnnxPredictor, export_onnx, fixed_size_detector

EXAMPLES = """
Examples:

For the size of the training crops, and compared with the detector itself on ten test images:
    python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth --check 10

For another size:
    python tools/export_model.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth \\
        --size 384 640 --output detector.onnx

Use it, without this project's training code in the graph:
    python -c "from soma_det import Detector; print(Detector('output/demo/model.onnx')('street.jpg').class_names)"
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write a trained detector, its adapter merged, to one ONNX file for one size of images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config.yaml of the run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint or exported detector of the run")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="pixels (default: the crop, made to fit)")
    parser.add_argument("--output", metavar="FILE", help="default: model.onnx beside the weights")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="compare on N test images of the source")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    args.output = args.output or str(Path(args.weights).with_name("model.onnx"))
    return args


def main(args: argparse.Namespace) -> str:
    """Export, compare where asked to, and say what was written."""
    words = [*args.opts, "MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
    cfg = setup_cfg(args.config_file, words)
    size = tuple(args.size or [-(-side // STEP) * STEP for side in cfg.INPUT.AUGMENTATION.CROP_SIZE])
    export_onnx(cfg, args.output, size, read_classes(Path(args.weights), cfg))
    megabytes = os.path.getsize(args.output) / 1e6
    text = f"Wrote {args.output} ({megabytes:.1f} MB) for images of {size[0]} x {size[1]} pixels."
    return f"{text}\n{compare(cfg, args.output, size, args.check)}" if args.check else text


def compare(cfg: CfgNode, path: str, size: tuple[int, int], count: int) -> str:
    """The largest differences from the detector itself on test images, and both times."""
    from detectron2.data import DatasetCatalog

    from soma_det.utils.visualizer import read_rgb

    register_from_config(cfg)
    check_data_exists([cfg.DATASETS.SOURCE_TEST])
    exported, eager = OnnxPredictor(path), fixed_size_detector(cfg, size)
    boxes, scores, unequal, times = 0.0, 0.0, 0, [0.0, 0.0]
    files = [record["file_name"] for record in DatasetCatalog.get(cfg.DATASETS.SOURCE_TEST)[:count]]
    for file in files:
        image = exported.prepare(read_rgb(file)[:, :, ::-1])[0]
        start = time.perf_counter()
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in eager(torch.from_numpy(image))]
        middle = time.perf_counter()
        found = exported.run(image)
        times = [times[0] + middle - start, times[1] + time.perf_counter() - middle]
        if len(found[0]) != len(expected[0]):
            unequal += 1
        elif len(found[0]):
            boxes = max(boxes, float(np.abs(found[0] - expected[0]).max()))
            scores = max(scores, float(np.abs(found[1] - expected[1]).max()))
    torch_ms, onnx_ms = (1000 * seconds / len(files) for seconds in times)
    return (
        f"Against the detector itself on {len(files)} images: boxes differ by at most {boxes:.2g} pixels, confidences "
        f"by {scores:.2g}; {unequal} images have another number of detections. {torch_ms:.0f} ms an image in torch, "
        f"{onnx_ms:.0f} in onnxruntime."
    )


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        print(main(arguments))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"export_model.py: error: {error}")
