"""A trained detector as one file of torch.export for one size of images."""

import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from soma_det.data.transforms.augmentation import PAD_VALUE
from soma_det.engine.fixed_size import METADATA, Description, TensorBackbone, TensorDetector, fixed_size_detector
from soma_det.modeling.meta_arch.lw_detr import LwDETR
from soma_det.utils.files import atomic_path


def export_torch(cfg: CfgNode, path: str | os.PathLike, size: Sequence[int], classes: Sequence[str]) -> None:
    """Write what torch.export can follow of the detector of MODEL.WEIGHTS, merged, for images of one size.

    An LW-DETR is exported whole. Where the number of boxes follows from the image, as in R-CNNs and RetinaNet,
    Detectron2 branches on it, and torch.export stops there: of these the file holds ViT and pyramid.

    Args: as of :func:`soma_det.engine.onnx_export.export_onnx`.

    Raises:
        ValueError: see :func:`soma_det.engine.fixed_size.fixed_size_detector`.
    """
    model = exportable(fixed_size_detector(cfg, size))
    example = torch.full((3, *size), PAD_VALUE, device="cpu")
    described = Description(tuple(size), cfg.INPUT.FORMAT, tuple(classes), model.names)
    with atomic_path(path) as temporary, torch.no_grad():
        program = torch.export.export(model, (example,), strict=False)
        torch.export.save(program, temporary, extra_files={METADATA: described.dump()})


def exportable(model: TensorDetector) -> TensorDetector:
    """The detector itself, or its backbone where torch.export cannot follow the heads."""
    return model if isinstance(model.detector, LwDETR) else TensorBackbone(model.detector).eval()
