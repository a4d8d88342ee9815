"""IBN-Net on Detectron2's ResNet: where instance normalization sits, and what it is blind to."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from soma_det.modeling.backbone.ibn_resnet import InstanceBatchNorm
from soma_det.modeling.backbone.timm_vit import count_parameters


def resnet_cfg(depth=18, norm="BN", freeze_at=0):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    return cfg


def build(name="build_ibn_resnet_backbone", **settings):
    return BACKBONE_REGISTRY.get(name)(resnet_cfg(**settings), ShapeSpec(channels=3))


def test_half_of_the_channels_is_blind_to_the_contrast_of_each_image():
    layer, x = InstanceBatchNorm(8, "BN").train(), torch.randn(2, 8, 6, 6)
    contrast = torch.tensor([0.5, 3.0]).view(2, 1, 1, 1)
    y, changed = layer(x), layer(contrast * x + 7)
    assert torch.allclose(y[:, :4], changed[:, :4], atol=1e-3)
    assert not torch.allclose(y[:, 4:], changed[:, 4:], atol=0.1)


def test_both_halves_are_normalized_as_torch_does():
    layer, x = InstanceBatchNorm(7, "BN").train(), torch.randn(2, 7, 6, 6)
    expected = torch.cat(
        [nn.functional.instance_norm(x[:, :3]), nn.functional.batch_norm(x[:, 3:], None, None, training=True)], 1
    )
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("depth, blocks", [(18, [2, 2, 2]), (50, [3, 4, 6])])
def test_only_the_first_norm_of_each_block_of_res2_to_res4_is_replaced(depth, blocks):
    resnet = build(depth=depth)
    found = [name for name, module in resnet.named_modules() if isinstance(module, InstanceBatchNorm)]
    expected = [f"res{stage}.{i}.conv1.norm" for stage, count in zip((2, 3, 4), blocks) for i in range(count)]
    assert found == expected
    plain = BACKBONE_REGISTRY.get("build_resnet_backbone")(resnet_cfg(depth=depth), ShapeSpec(channels=3))
    assert count_parameters(resnet) == count_parameters(plain)  # a weight and a bias for each channel, as before


def test_frozen_stages_are_frozen_with_their_new_layers():
    resnet = build(freeze_at=2)
    assert count_parameters(resnet.res2, trainable=True) == 0
    assert isinstance(resnet.res2[0].conv1.norm.batch, FrozenBatchNorm2d)
    assert count_parameters(resnet.res3, trainable=True) == count_parameters(resnet.res3)


def test_the_pyramid_has_strides_4_to_128_and_every_parameter_gets_a_gradient():
    backbone = build("build_ibn_resnet_fpn_backbone")
    features = backbone(torch.randn(2, 3, 64, 96))
    assert {name: feature.shape[1:] for name, feature in features.items()} == {
        f"p{level}": (16, -(-64 // 2**level), -(-96 // 2**level)) for level in range(2, 8)
    }
    sum(feature.square().sum() for feature in features.values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_features_are_in_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = build("build_ibn_resnet_fpn_backbone")(torch.randn(2, 3, 64, 96))
    assert {feature.dtype for feature in features.values()} == {torch.float32}


def test_a_saved_ibn_net_is_the_same_after_loading(tmp_path):
    first, second, x = build().eval(), build().eval(), torch.randn(1, 3, 64, 64)
    torch.save(first.state_dict(), tmp_path / "resnet.pth")
    second.load_state_dict(torch.load(tmp_path / "resnet.pth"))
    assert torch.equal(first(x)["res5"], second(x)["res5"])


def test_a_resnet_without_norms_is_refused():
    with pytest.raises(ValueError, match="NORM is empty.*BN or SyncBN"):
        build(norm="")
