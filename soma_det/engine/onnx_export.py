"""A trained detector as one ONNX file for one size of images, and what runs it.

The graph takes the image as it is after resizing and padding, float32 gray levels (3, H, W) in the order of
INPUT.FORMAT, and gives boxes (N, 4) in its pixels, confidences (N,) and classes (N,). Pixel statistics, non-maximum
suppression and position embeddings of this size are inside. What to do before and after stands in the file's metadata.
"""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from soma_det.adapters import is_mergeable, merge
from soma_det.data.transforms.augmentation import PAD_VALUE
from soma_det.engine.trainer import load_model
from soma_det.modeling.backbone.timm_vit import find_vits
from soma_det.utils.files import atomic_path

OPSET = 17  # ROIAlign is right from 16 on; the exporter ends at 20
OUTPUTS = ("boxes", "scores", "classes")
METADATA = "soma_det"  # key in the file
STEP = 32  # pixels: sizes are multiples of it, as the pyramid's strides ask

logger = logging.getLogger(__name__)


class TensorDetector(nn.Module):
    """A detector from tensor to tensors."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(3, H, W) -> boxes (N, 4), confidences (N,), classes (N,)"""
        found = self.detector([{"image": image}])[0]["instances"]
        return found.pred_boxes.tensor, found.scores, found.pred_classes


def export_onnx(cfg: CfgNode, path: str | os.PathLike, size: tuple[int, int], classes: tuple[str, ...]) -> None:
    """Write the detector of MODEL.WEIGHTS, merged, as an ONNX file for images of one size.

    Args:
        size: (H, W), pixels, multiples of 32.
        classes: names, in the order of the class numbers.

    Raises:
        ImportError: onnx is not installed.
        ValueError: the size is no multiple of 32, or see :func:`soma_det.engine.load_model`.
    """
    onnx = _require("onnx")
    if len(size) != 2 or any(side < STEP or side % STEP for side in size):
        raise ValueError(f"The size is {list(size)}: give height and width in pixels, multiples of {STEP}.")
    model = fixed_size_detector(cfg, size)
    example = torch.full((3, *size), PAD_VALUE, device="cpu")
    axes = {name: {0: "detections"} for name in OUTPUTS}
    with atomic_path(path) as temporary, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of each size that the graph holds on to, as it is meant to
        # The exporter that is new in torch 2.9 fails on non-maximum suppression and ROIAlign.
        torch.onnx.export(
            model, (example,), str(temporary), dynamo=False, opset_version=OPSET, input_names=["image"],
            output_names=list(OUTPUTS), dynamic_axes=axes,
        )  # fmt: skip
        graph = onnx.load(str(temporary))
        content = {"size": list(size), "format": cfg.INPUT.FORMAT, "classes": list(classes)}
        entry = graph.metadata_props.add()
        entry.key, entry.value = METADATA, json.dumps(content)
        onnx.save(graph, str(temporary))


def fixed_size_detector(cfg: CfgNode, size: tuple[int, int]) -> TensorDetector:
    """The merged detector on the CPU, its position embeddings resampled to one size beforehand."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.INPUT.PAD_TO_CROP = "cpu", False
    cfg.freeze()
    model = load_model(cfg)
    if is_mergeable(model):
        merge(model)
    for vit in find_vits(model).values():
        if hasattr(vit.model, "set_input_size"):
            vit.model.set_input_size(img_size=tuple(size))
    return TensorDetector(model).eval()


class OnnxPredictor:
    """Runs an exported file on single images, as :class:`soma_det.engine.predictor.Predictor` runs a model.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file was not written by :func:`export_onnx`.
    """

    def __init__(self, path: str | os.PathLike):
        runtime = _require("onnxruntime")
        self.session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        content = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if content is None:
            raise ValueError(f"{Path(path)} was not written by tools/export_model.py: it does not say how to use it.")
        described: dict[str, Any] = json.loads(content)
        self.size, self.classes = tuple(described["size"]), tuple(described["classes"])
        self.is_rgb = described["format"] == "RGB"

    def __call__(self, image: np.ndarray) -> Instances:
        """Detections on a BGR image (H, W, 3) uint8, in its pixels."""
        height, width = image.shape[:2]
        pixels, inner = self.prepare(image)
        boxes, scores, classes = map(torch.from_numpy, self.run(pixels))
        result = Instances((height, width))
        result.pred_boxes = Boxes(boxes * torch.tensor([width / inner[1], height / inner[0]] * 2))
        result.pred_boxes.clip((height, width))
        result.scores, result.pred_classes = scores, classes
        return result[result.pred_boxes.nonempty()]

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """BGR (h, w, 3) uint8 -> the graph's input (3, H, W), and the height and width that the image takes there."""
        height, width = image.shape[:2]
        scale = min(self.size[0] / height, self.size[1] / width)
        inner = max(1, round(scale * height)), max(1, round(scale * width))
        pixels = np.ascontiguousarray(image[:, :, ::-1] if self.is_rgb else image)
        padded = np.full((*self.size, 3), PAD_VALUE, np.float32)
        padded[: inner[0], : inner[1]] = T.ResizeTransform(height, width, *inner).apply_image(pixels)
        return np.ascontiguousarray(padded.transpose(2, 0, 1)), inner

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Boxes (N, 4) in pixels of the input, confidences (N,), classes (N,)."""
        return self.session.run(list(OUTPUTS), {"image": pixels})


def _require(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"Exported models need {name}: pip install 'soma_det[export]'.") from error
