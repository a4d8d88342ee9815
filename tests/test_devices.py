"""Adapted backbones and heads on a GPU that is not there: torch's fake tensors tell one left on the CPU."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from adapter_cases import FROZEN, cases, config_of
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from soma_det.adapters import adapt
from soma_det.config import setup_cfg
from soma_det.modeling.backbone.pyramid import SimplePyramid
from soma_det.modeling.backbone.timm_vit import TimmViT

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MOA = ("moa", "moa_lora")  # their routing depends on data, which fake tensors do not have


def fake_tensors_need_a_driver():
    """In old builds of torch with CUDA, an index into a fake tensor on the GPU asks for a driver."""
    try:
        with FakeTensorMode():
            _ = torch.empty(2, device="cuda")[:1]
    except RuntimeError as error:
        return "driver" in str(error)
    return False


pytestmark = pytest.mark.skipif(fake_tensors_need_a_driver(), reason="this torch needs a driver for fake tensors")


def adapted_on_cpu(case):
    """Adapted with real numbers, which decompositions need."""
    vit = timm.create_model("test_vit", num_classes=0, img_size=64, dynamic_img_size=True)
    config = config_of(case)
    adapt(vit, config, config.usual_blocks(FROZEN, 5))
    return SimplePyramid(TimmViT(vit, [5]), 8).eval()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in cases() if case not in MOA])
def test_an_adapted_backbone_leaves_no_tensor_on_the_cpu(case, dtype):
    backbone = adapted_on_cpu(case)
    fake = to_fake(backbone, mode := FakeTensorMode(allow_non_fake_inputs=False))
    with mode, autocast(dtype), torch.no_grad():
        features = fake(torch.empty(1, 3, 64, 96, device="cuda"))
    assert [tuple(feature.shape[2:]) for feature in features.values()][:2] == [(16, 24), (8, 12)]
    assert {feature.device.type for feature in features.values()} == {"cuda"}


@contextmanager
def autocast(dtype):
    """torch.autocast("cuda", dtype), which without a GPU would do nothing but warn."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype if dtype != torch.float32 else before[1])
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def test_autocast_without_a_gpu_is_on():
    with FakeTensorMode(), autocast(torch.bfloat16):
        x = torch.empty(2, 2, device="cuda")
        assert (x @ x).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")


def detector_on_gpu(*opts):
    """A tiny detector with fake weights on cuda, and its mode: how many boxes a level gets may depend on data."""
    tiny = {
        "MODEL.DEVICE": "cpu", "MODEL.VIT.NAME": "test_vit", "MODEL.VIT.WEIGHTS": "", "MODEL.VIT.IMG_SIZE": "[64,64]",
        "MODEL.VIT.FROZEN_BLOCKS": "1", "MODEL.PYRAMID.OUT_CHANNELS": "16", "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    }  # fmt: skip
    words = [word for pair in tiny.items() for word in pair]
    cfg = setup_cfg(str(Path(__file__).parents[1] / "configs" / "Base-SoMA.yaml"), [*words, *opts])
    model = build_model(cfg)
    return to_fake(model, mode := FakeTensorMode(allow_non_fake_inputs=False, shape_env=ShapeEnv())), mode


def maps(names):
    return [torch.empty(2, 16, 2 ** (8 - int(name[1])), 2 ** (8 - int(name[1])), device="cuda") for name in names]


R_CNNS = {
    "faster": [],
    "cascade": ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"],
    "mask": ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("opts", R_CNNS.values(), ids=R_CNNS)
def test_the_parts_of_an_rcnn_leave_no_tensor_on_the_cpu(opts, dtype):
    """Proposals, sampling and losses are left out: how many boxes they have depends on data."""
    model, mode = detector_on_gpu(*opts)
    rpn, heads = model.proposal_generator, model.roi_heads
    with mode, autocast(dtype), torch.no_grad():
        features = maps(rpn.in_features)
        anchors = rpn.anchor_generator(features)
        logits, deltas = rpn.rpn_head(features)
        pooled = heads.box_pooler(maps(heads.box_in_features), [Boxes(torch.empty(8, 4, device="cuda"))] * 2)
        stages = (
            zip(heads.box_head, heads.box_predictor)
            if isinstance(heads.box_head, torch.nn.ModuleList)  # a cascade's stages
            else [(heads.box_head, heads.box_predictor)]
        )
        outputs = [part for head, predictor in stages for part in predictor(head(pooled))]
        if model.roi_heads.mask_on:
            outputs.append(heads.mask_head.layers(torch.empty(4, 16, 14, 14, device="cuda")))
    assert {part.device.type for part in [*(a.tensor for a in anchors), *logits, *deltas, *outputs]} == {"cuda"}
    assert {part.dtype for part in [*logits, *deltas, *outputs]} == {dtype}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_retinanets_head_leaves_no_tensor_on_the_cpu(dtype):
    model, mode = detector_on_gpu("MODEL.META_ARCHITECTURE", "AdaptedRetinaNet")
    with mode, autocast(dtype), torch.no_grad():
        features = maps(model.head_in_features)
        anchors = model.anchor_generator(features)
        logits, deltas = model.head(features)
    assert {part.device.type for part in [*(a.tensor for a in anchors), *logits, *deltas]} == {"cuda"}
    assert {part.dtype for part in [*logits, *deltas]} == {dtype}


def on_gpu(tensor, mode):
    fake = mode.from_tensor(tensor)
    with mode:  # a copy to the device would ask for a driver
        return torch.empty_like(fake, device="cuda")


def to_fake(module, mode):
    """The module with fake parameters and buffers on the device cuda, in place."""
    for part in module.modules():
        for key, value in vars(part).items():  # what peft keeps beside parameters and buffers
            assert not isinstance(value, torch.Tensor), f"{type(part).__name__}.{key} would stay on the CPU"
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = on_gpu(parameter.detach(), mode)
                part._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_gpu(buffer, mode)
    return module


def test_a_tensor_left_on_the_cpu_is_found():
    """What the tests above could not find would make them worthless."""
    backbone = adapted_on_cpu("soma")
    layer = next(part for part in backbone.modules() if type(part).__name__ == "SomaLinear")
    to_fake(backbone, mode := FakeTensorMode(allow_non_fake_inputs=False))
    with mode:
        layer.residual = torch.nn.Parameter(torch.empty(layer.residual.shape), requires_grad=False)
        with pytest.raises(RuntimeError, match="device"), torch.no_grad():
            backbone(torch.empty(1, 3, 64, 96, device="cuda"))
