"""Runs exported detectors on single images, as :class:`soma_det.engine.predictor.Predictor` runs a model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from soma_det.data.transforms.augmentation import PAD_VALUE
from soma_det.engine.fixed_size import METADATA, Description, require

Run = Callable[[np.ndarray], list[np.ndarray]]  # the image (3, H, W) float32 -> the outputs
ONNX, TORCH = ".onnx", ".pt2"


class FixedSizePredictor:
    """Resizes and pads an image to the detector's size, and brings the boxes back.

    Args:
        described: the detector.
        run: the image (3, H, W), float32 -> boxes (N, 4) in its pixels, confidences (N,), classes (N,).
    """

    def __init__(self, described: Description, run: Run):
        self.size, self.classes, self.run = described.size, described.classes, run
        self._is_rgb = described.format == "RGB"

    def __call__(self, image: np.ndarray) -> Instances:
        """Detections on a BGR image (H, W, 3) uint8, in its pixels."""
        height, width = image.shape[:2]
        pixels, inner = self.prepare(image)
        boxes, scores, classes = (torch.from_numpy(np.array(output)) for output in self.run(pixels))
        result = Instances((height, width))
        result.pred_boxes = Boxes(boxes * torch.tensor([width / inner[1], height / inner[0]] * 2))
        result.pred_boxes.clip((height, width))
        result.scores, result.pred_classes = scores, classes
        return result[result.pred_boxes.nonempty()]

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """BGR (h, w, 3) uint8 -> the detector's input (3, H, W), and the height and width of the image in it."""
        height, width = image.shape[:2]
        scale = min(self.size[0] / height, self.size[1] / width)
        inner = max(1, round(scale * height)), max(1, round(scale * width))
        pixels = np.ascontiguousarray(image[:, :, ::-1] if self._is_rgb else image)
        padded = np.full((*self.size, 3), PAD_VALUE, np.float32)
        padded[: inner[0], : inner[1]] = T.ResizeTransform(height, width, *inner).apply_image(pixels)
        return np.ascontiguousarray(padded.transpose(2, 0, 1)), inner


class ExportedPredictor(FixedSizePredictor):
    """Runs a file of tools/export_model.py on the CPU, with as many threads as torch has.

    Args:
        path: an .onnx file.
        runtime: "onnxruntime" or "openvino".

    Raises:
        ImportError: the runtime is not installed.
        ValueError: tools/export_model.py did not write the file, or there is no such runtime.
    """

    def __init__(self, path: str | os.PathLike, runtime: str = "onnxruntime"):
        super().__init__(*open_exported(path, runtime))


def open_exported(path: str | os.PathLike, runtime: str = "onnxruntime") -> tuple[Description, Run]:
    """What an exported file says of itself, and the function that runs it; arguments as of ExportedPredictor.

    A .pt2 file is opened too. Torch unpickles parts of it: give only what this process has written.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"The runtime is {runtime!r}: choose one of {', '.join(RUNTIMES)}.")
    text, run = _torch(str(path)) if Path(path).suffix == TORCH else RUNTIMES[runtime](str(path))
    return Description.load(text, path), run


def _onnxruntime(path: str) -> tuple[str | None, Run]:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    return text, lambda image: session.run(None, {"image": image})


def _openvino(path: str) -> tuple[str | None, Run]:
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    model = core.read_model(path)
    place = ["framework", METADATA]
    text = model.get_rt_info(place).value if model.has_rt_info(place) else None
    # Some CPUs would otherwise compute in bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    return text, lambda image: list(compiled([image]).to_tuple())


def _torch(path: str) -> tuple[str | None, Run]:
    files: dict[str, Any] = {METADATA: ""}
    module = torch.export.load(path, extra_files=files).module()

    @torch.no_grad()
    def run(image: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in module(torch.from_numpy(image))]

    return files[METADATA], run


RUNTIMES: dict[str, Callable[[str], tuple[str | None, Run]]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
