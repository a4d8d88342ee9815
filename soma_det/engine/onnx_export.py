"""A trained detector as one ONNX file for one size of images, in fp32 or with int8 arithmetic."""

import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from soma_det.data.transforms.augmentation import PAD_VALUE
from soma_det.engine.exported_predictor import FixedSizePredictor
from soma_det.engine.fixed_size import METADATA, OUTPUTS, Description, fixed_size_detector, require
from soma_det.utils.files import atomic_path
from soma_det.utils.images import read_image

OPSET = 17  # ROIAlign is right from 16 on; the exporter ends at 20
QUANTIZED = ("MatMul", "Conv", "Gemm")  # of the backbone; the heads stay in fp32: boxes and scores need the precision
CALIBRATION = 32  # images


def export_onnx(cfg: CfgNode, path: str | os.PathLike, size: Sequence[int], classes: Sequence[str]) -> None:
    """Write the detector of MODEL.WEIGHTS, merged, as an ONNX file for images of one size.

    Args:
        size: (H, W), pixels, multiples of 32.
        classes: names, in the order of the class numbers.

    Raises:
        ImportError: onnx is not installed.
        ValueError: see :func:`soma_det.engine.fixed_size.fixed_size_detector`.
    """
    onnx = require("onnx")
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
        entry = graph.metadata_props.add()
        entry.key, entry.value = METADATA, Description(tuple(size), cfg.INPUT.FORMAT, tuple(classes)).dump()
        onnx.save(graph, str(temporary))


def quantize_onnx(source: str | os.PathLike, path: str | os.PathLike, images: Iterable[np.ndarray]) -> None:
    """Write an exported detector whose backbone multiplies in int8.

    Weights are rounded for each channel, features by the range that they have on the images.

    Args:
        source: a file of :func:`export_onnx`.
        images: (3, H, W) float32 as the file takes them, of the training set.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
    """
    onnx, _ = require("onnx"), require("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"image": image}

    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        quantization.quantize_static(
            prepared, str(temporary), Images(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=backbone_products(graph), op_types_to_quantize=list(QUANTIZED),
        )  # fmt: skip
        quantized = onnx.load(str(temporary))
        if not any(entry.key == METADATA for entry in quantized.metadata_props):
            quantized.metadata_props.extend(graph.metadata_props)
            onnx.save(quantized, str(temporary))


def calibration_images(cfg: CfgNode, predictor: FixedSizePredictor) -> Iterator[np.ndarray]:
    """Images for :func:`quantize_onnx`, spread evenly over the first training set, which is registered."""
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    for record in records[:: max(1, len(records) // CALIBRATION)][:CALIBRATION]:
        yield predictor.prepare(read_image(record["file_name"], "BGR"))[0]


def backbone_products(graph: Any) -> list[str]:
    """The names of an ONNX model's products with weights in the backbone."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in QUANTIZED and "/backbone/" in node.name and weights.intersection(node.input)
    ]
