"""Adapted backbones and heads on a GPU that is not there: torch's fake tensors tell one left on the CPU."""

import pytest
import timm
import torch
from adapter_cases import FROZEN, cases, config_of
from torch._subclasses.fake_tensor import FakeTensorMode

from soma_det.adapters import adapt
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
    with mode, torch.autocast("cuda", dtype, enabled=dtype != torch.float32), torch.no_grad():
        features = fake(torch.empty(1, 3, 64, 96, device="cuda"))
    assert [tuple(feature.shape[2:]) for feature in features.values()][:2] == [(16, 24), (8, 12)]
    assert {feature.device.type for feature in features.values()} == {"cuda"}


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
