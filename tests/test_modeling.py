"""The ViT backbone that the registry builds: shapes, what is frozen, what trains, and what wrong settings get."""

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from safetensors.torch import save_file

from soma_det.adapters.soma import SomaLinear
from soma_det.config import setup_cfg
from soma_det.modeling.freezing import fingerprint, freeze, match_modules
from soma_det.modeling.backbone.timm_vit import count_parameters, create_timm_vit

TINY = [
    "MODEL.VIT.NAME",
    "test_vit",
    "MODEL.VIT.WEIGHTS",
    "",
    "MODEL.VIT.IMG_SIZE",
    [64, 96],
    "MODEL.VIT.FROZEN_BLOCKS",
    2,
]
TINY += ["MODEL.ADAPTER.RANK", 4, "MODEL.DEVICE", "cpu", "MODEL.PYRAMID.OUT_CHANNELS", 16]


def build(*opts):
    cfg = setup_cfg("configs/Base-SoMA.yaml", [*TINY, *opts])
    return BACKBONE_REGISTRY.get("build_soma_vit_backbone")(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("out_blocks", [[-1], [0, 1, 3, 5]])
def test_features_have_strides_4_to_64_at_any_size(out_blocks):
    backbone = build("MODEL.VIT.OUT_BLOCKS", out_blocks)
    for height, width in ((64, 96), (128, 64), (96, 160)):
        features = backbone(torch.randn(2, 3, height, width))
        assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
        for name, shape in backbone.output_shape().items():
            size = (-(-height // shape.stride), -(-width // shape.stride))
            assert features[name].shape == (2, shape.channels, *size)


def test_the_recipe_for_vit_large_trains_4_718_592_adapter_weights_and_147_456_biases():
    opts = ["MODEL.VIT.WEIGHTS", "", "MODEL.VIT.IMG_SIZE", [32, 32]]
    cfg = setup_cfg(
        "configs/diverse_weather/faster_rcnn_dinov2_l.yaml", ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", False, *opts]
    )
    cfg = without_decomposition(cfg)
    vit = BACKBONE_REGISTRY.get("build_soma_vit_backbone")(cfg, ShapeSpec(channels=3)).vit
    trainable = {name: p.numel() for name, p in vit.named_parameters() if p.requires_grad}
    biases = sum(count for name, count in trainable.items() if name.endswith("bias"))
    assert biases == 147_456
    assert sum(trainable.values()) - biases == 4_718_592
    assert {int(name.split(".")[2]) for name in trainable} == set(range(8, 24))


def without_decomposition(cfg):
    """Naming a checkpoint spares the decomposition, whose result would be overwritten anyhow."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = "model_final.pth"
    return cfg


def test_no_gradient_work_is_spent_below_the_first_trainable_parameter():
    backbone = build()
    requires_grad = []
    for block in backbone.vit.model.blocks:
        block.register_forward_hook(lambda module, x, y: requires_grad.append((x[0].requires_grad, y.requires_grad)))
    backbone(torch.randn(1, 3, 64, 96))
    assert requires_grad[:3] == [(False, False), (False, False), (False, True)]


def test_blocks_after_the_last_one_asked_for_are_not_computed():
    backbone = build("MODEL.VIT.OUT_BLOCKS", [3])
    ran = []
    for index, block in enumerate(backbone.vit.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    backbone(torch.randn(1, 3, 64, 96))
    assert ran == [0, 1, 2, 3]


def test_only_adapters_and_biases_of_adapted_layers_train():
    backbone = build()
    for name, parameter in backbone.vit.model.named_parameters():
        layer = backbone.vit.model.get_submodule(name.rpartition(".")[0])
        expected = isinstance(layer, SomaLinear) and name.rsplit(".")[-1] in ("a", "b", "bias")
        assert parameter.requires_grad == expected, name
    assert not any(
        ".bias" in n for n, p in build("MODEL.ADAPTER.TRAIN_BIAS", False).vit.named_parameters() if p.requires_grad
    )


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = build("MODEL.VIT.ACTIVATION_CHECKPOINTING", checkpointing).train()
        backbone(torch.ones(1, 3, 64, 96))["p4"].square().sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_a_local_file_are_loaded_before_the_decomposition(tmp_path, suffix):
    pretrained = timm.create_model("test_vit", num_classes=0)
    path = str(tmp_path / f"vit{suffix}")
    state = pretrained.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    adapted = build("MODEL.VIT.WEIGHTS", path).vit.model
    layer, weight = adapted.blocks[3].mlp.fc1, pretrained.blocks[3].mlp.fc1.weight
    assert torch.allclose(layer.weight, weight, atol=1e-6)
    smallest = torch.linalg.svdvals(weight)[-4:]
    assert torch.allclose(torch.linalg.svdvals(layer.b[0] @ layer.a[0])[:4], smallest, atol=1e-5)


def test_patch_embeddings_of_a_local_file_are_resampled(tmp_path):
    pretrained = timm.create_model("test_vit", num_classes=0, patch_size=8)
    path = str(tmp_path / "vit.safetensors")
    save_file(pretrained.state_dict(), path)
    vit = create_timm_vit("test_vit", path, patch_size=16, img_size=(64, 96))
    assert vit.patch_embed.proj.weight.shape[-2:] == (16, 16)
    assert torch.equal(vit.blocks[0].attn.qkv.weight, pretrained.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (["MODEL.VIT.NAME", "vit_titanic"], ValueError, "timm .* has no model 'vit_titanic'"),
        (["MODEL.VIT.NAME", "resnet18"], ValueError, "ViT"),
        (["MODEL.VIT.WEIGHTS", "missing.pth"], FileNotFoundError, "'missing.pth', which is no file"),
        (["MODEL.VIT.IMG_SIZE", [60, 96]], ValueError, "has to be a multiple of PATCH_SIZE 16"),
        (["MODEL.VIT.FROZEN_BLOCKS", 99], ValueError, r"FROZEN_BLOCKS is 99, outside 0\.\.6"),
        (["MODEL.VIT.FROZEN_BLOCKS", 6], ValueError, "No block is left to adapt"),
        (["MODEL.VIT.OUT_BLOCKS", [1, 2]], ValueError, "OUT_BLOCKS has 2 blocks"),
        (["MODEL.VIT.OUT_BLOCKS", [17]], ValueError, "blocks 0..5"),
        (["MODEL.VIT.OUT_BLOCKS", [5, 2, 3, 4]], ValueError, r"OUT_BLOCKS \[5, 2, 3, 4\] has to rise"),
        (["MODEL.VIT.OUT_BLOCKS", [2, 3, 4, 4]], ValueError, "has to rise"),
        (["MODEL.VIT.PATCH_SIZE", 14, "MODEL.VIT.IMG_SIZE", [56, 84]], ValueError, "PATCH_SIZE is 14.*set 16"),
        (["MODEL.VIT.OUT_BLOCKS", [3], "MODEL.ADAPTER.BLOCKS", [3, 5]], ValueError, "blocks after 3.*not computed"),
        (["MODEL.ADAPTER.BLOCKS", [1, 4]], ValueError, "reaches into the 2 MODEL.VIT.FROZEN_BLOCKS"),
        (["MODEL.ADAPTER.NAME", "sorcery"], ValueError, "'sorcery'"),
    ],
)
def test_wrong_settings_name_value_and_remedy(opts, error, message):
    with pytest.raises(error, match=message):
        build(*opts)


def test_a_file_with_other_weights_is_refused(tmp_path):
    path = str(tmp_path / "other.pth")
    torch.save({"something.else": torch.zeros(3)}, path)
    with pytest.raises(RuntimeError, match="does not hold the weights of test_vit"):
        build("MODEL.VIT.WEIGHTS", path)


def test_freezing_matches_whole_names_and_a_pattern_without_match_is_an_error():
    vit = timm.create_model("test_vit")
    assert list(match_modules(vit, [r"blocks\.[01]"])) == ["blocks.0", "blocks.1"]
    with pytest.raises(ValueError, match="'blocks' matches|'block' matches no module"):
        match_modules(vit, ["block"])
    freeze(match_modules(vit, [r"blocks\.0"]).values())
    assert count_parameters(vit.blocks[0], trainable=True) == 0 and not vit.blocks[0].training
    assert count_parameters(vit.blocks[1], trainable=True) == count_parameters(vit.blocks[1]) and vit.blocks[1].training


def test_a_fingerprint_notices_the_smallest_change():
    layer = torch.nn.Linear(3, 3)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.bias[1] = torch.nextafter(layer.bias[1], torch.tensor(9.0))
    assert fingerprint(layer) != before
