"""Losses of detectors on a GPU that is not there: what depends on data gets a fixed answer, so shapes are known."""

import numpy
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from test_devices import DTYPES, autocast, detector_on_gpu, pytestmark  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
ROWS = 4
SHORT = ["MODEL.RPN.PRE_NMS_TOPK_TRAIN", "16", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "8"]
DETECTORS = {
    "faster": SHORT,
    "cascade": [
        *SHORT, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
    ],
    "mask": [*SHORT, "MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"],
    "retinanet": ["MODEL.META_ARCHITECTURE", "AdaptedRetinaNet"],
    "lw_detr": [
        "MODEL.META_ARCHITECTURE", "AdaptedLwDETR", "MODEL.DETR.DECODER_LAYERS", "2", "MODEL.DETR.NUM_QUERIES", "8",
    ],
}  # fmt: skip


class Answers(TorchDispatchMode):
    """A number asked of a tensor is 1; a mask chooses ``ROWS`` elements, and so does non-maximum suppression."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is ATEN._local_scalar_dense.default:
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
        if func is ATEN.nonzero.default:
            return torch.zeros(ROWS, args[0].dim(), dtype=torch.int64, device=args[0].device)
        if func is torch.ops.torchvision.nms.default:
            return torch.zeros(ROWS, dtype=torch.int64, device=args[0].device)
        if func in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default):
            args = (args[0], [i for index in args[1] for i in rows_of(index)], *args[2:])
        return func(*args, **(kwargs or {}))


def rows_of(index):
    """A mask as an index for each of its dimensions; others as they are."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.zeros(ROWS, dtype=torch.int64, device=index.device)] * index.dim()


def losses(model, mode, dtype):
    """Of two images with three boxes each; their sizes are given, since they would be asked of tensors."""
    images = [(64, 64)] * 2
    with mode, Answers(), EventStorage(), autocast(dtype):
        model.preprocess_image = lambda batch: ImageList(torch.empty(2, 3, 64, 64, device="cuda"), images)
        boxes, classes = torch.empty(3, 4, device="cuda"), torch.zeros(3, dtype=torch.int64, device="cuda")
        masks = BitMasks(torch.zeros(3, 64, 64, dtype=torch.bool, device="cuda"))
        fields = {"gt_boxes": Boxes(boxes), "gt_classes": classes, "gt_masks": masks}
        return model([{"instances": Instances(size, **fields)} for size in images])


@pytest.fixture
def assignment(request, monkeypatch):
    """LW-DETR's assignment, which scipy computes from numbers on the CPU: query i has box i."""
    if "lw_detr" in request.node.name:
        matcher = pytest.importorskip("transformers.loss.loss_lw_detr")
        monkeypatch.setattr(matcher, "linear_sum_assignment", lambda costs: (numpy.arange(3), numpy.arange(3)))


@pytest.mark.usefixtures("assignment")
@pytest.mark.parametrize(
    ("detector", "dtype"),
    [
        pytest.param(name, dtype, marks=() if (name, dtype) == ("faster", torch.float16) else pytest.mark.slow)
        for name in DETECTORS
        for dtype in DTYPES
    ],
)
def test_the_losses_of_a_detector_leave_no_tensor_on_the_cpu(detector, dtype):
    model, mode = detector_on_gpu(*DETECTORS[detector])
    found = losses(model.train(), mode, dtype)
    assert len(found) >= 2 and {loss.device.type for loss in found.values()} == {"cuda"}
    assert all(loss.requires_grad for loss in found.values())


@pytest.mark.usefixtures("assignment")
@pytest.mark.parametrize(
    "detector, part",
    [
        ("faster", "roi_heads.box_predictor.bbox_pred"),
        ("retinanet", "head.bbox_pred"),
        ("lw_detr", "head.class_embed"),
    ],
)
def test_a_bias_left_on_the_cpu_is_found_in_the_losses(detector, part):
    model, mode = detector_on_gpu(*DETECTORS[detector])
    layer = model.train().get_submodule(part)
    with mode:
        layer.bias = torch.nn.Parameter(torch.empty(layer.bias.shape))
    with pytest.raises(RuntimeError, match="device"):
        losses(model, mode, torch.float32)


def test_anchors_left_on_the_cpu_are_found_in_the_losses():
    model, mode = detector_on_gpu(*SHORT)
    anchors = model.train().proposal_generator.anchor_generator.cell_anchors
    with mode:
        for name, cells in list(anchors._buffers.items()):
            anchors._buffers[name] = torch.empty(cells.shape)
    with pytest.raises(RuntimeError, match="device"):
        losses(model, mode, torch.float32)
