"""Runs a detector on single images."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import nn

from soma_det.adapters import is_mergeable, merge
from soma_det.engine import load_model


class Predictor:
    """Prepares an image as in testing, runs the model, and hands back its detections in the image's own pixels.

    Detectron2's DefaultPredictor builds the model itself and lets mismatched weights pass.
    """

    def __init__(self, model: nn.Module, min_size: int, max_size: int, input_format: str):
        """
        Args:
            model: in evaluation mode.
            min_size, max_size: pixels; the shorter side is scaled to ``min_size`` unless the longer one would exceed
                ``max_size``. A ``min_size`` of 0 leaves the image as it is.
            input_format: the order of channels that the model takes, "RGB" or "BGR".
        """
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {input_format!r}: set it to RGB or BGR.")
        self.model = model
        self._resize = T.ResizeShortestEdge([min_size, min_size], max_size)
        self._flip_channels = input_format == "RGB"

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detections, on the CPU, on a BGR image (H, W, 3) uint8."""
        height, width = image.shape[:2]
        image = image[:, :, ::-1] if self._flip_channels else image
        resized = self._resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))  # (H, W, 3) -> (3, H, W)
        return self.model([{"image": tensor, "height": height, "width": width}])[0]["instances"].to("cpu")


def build_predictor(cfg: CfgNode) -> Predictor:
    """A predictor for a config whose MODEL.WEIGHTS names a checkpoint; adapters that can be are merged.

    Raises:
        ValueError: see :func:`soma_det.engine.load_model`.
    """
    model = load_model(cfg)
    if is_mergeable(model):
        merge(model)
    return Predictor(model, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT)
