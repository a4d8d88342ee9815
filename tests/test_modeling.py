"""The ViT backbone that the registry builds: shapes, what is frozen, what trains, and what wrong settings get."""

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from safetensors.torch import save_file
from torch import nn

from soma_det.adapters.soma import SomaLinear
from soma_det.config import setup_cfg
from soma_det.modeling import TimmViT
from soma_det.modeling.backbone.timm_vit import count_parameters, create_timm_vit
from soma_det.modeling.freezing import fingerprint, freeze, match_modules

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


PYRAMIDS = pytest.mark.parametrize("out_blocks", [[-1], [0, 1, 3, 5]], ids=["simple", "multi_block"])


def tiny_cfg(*opts):
    return setup_cfg("configs/Base-SoMA.yaml", [*TINY, *opts])


def build(*opts):
    return BACKBONE_REGISTRY.get("build_soma_vit_backbone")(tiny_cfg(*opts), ShapeSpec(channels=3))


@pytest.mark.parametrize("patch_size", [16, 8])
@PYRAMIDS
def test_features_have_strides_4_to_128_at_any_size(out_blocks, patch_size):
    backbone = build("MODEL.VIT.OUT_BLOCKS", out_blocks, "MODEL.VIT.PATCH_SIZE", patch_size)
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {f"p{level}": 2**level for level in range(2, 8)}
    for height, width in ((64, 96), (128, 64), (96, 160)):
        features = backbone(torch.randn(2, 3, height, width))
        assert list(features) == list(shapes)
        for name, shape in shapes.items():
            size = (-(-height // shape.stride), -(-width // shape.stride))
            assert features[name].shape == (2, shape.channels, *size)


@PYRAMIDS
def test_p6_and_p7_are_every_second_pixel_of_the_level_before(out_blocks):
    features = build("MODEL.VIT.OUT_BLOCKS", out_blocks)(torch.randn(1, 3, 128, 160))
    assert torch.equal(features["p6"], features["p5"][:, :, ::2, ::2])
    assert torch.equal(features["p7"], features["p6"][:, :, ::2, ::2])


@PYRAMIDS
def test_features_leave_in_fp32_under_autocast_which_computes_them_in_less(out_blocks):
    backbone, dtypes = build("MODEL.VIT.OUT_BLOCKS", out_blocks), set()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _x, y: dtypes.add(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(torch.randn(1, 3, 64, 96))
    assert dtypes == {torch.bfloat16}
    assert {feature.dtype for feature in features.values()} == {torch.float32}


def test_double_precision_stays_double():
    features = build().double()(torch.randn(1, 3, 64, 96, dtype=torch.float64))
    assert {feature.dtype for feature in features.values()} == {torch.float64}


@PYRAMIDS
def test_a_pyramid_holds_the_vit_as_a_backbone_with_the_timm_model_inside(out_blocks):
    backbone = build("MODEL.VIT.OUT_BLOCKS", out_blocks)
    assert isinstance(backbone, SimpleFeaturePyramid if len(out_blocks) == 1 else Backbone)
    assert isinstance(backbone.net, TimmViT) and isinstance(backbone.net, Backbone)
    depth, shapes = len(backbone.net.model.blocks), backbone.net.output_shape()
    assert list(shapes) == [f"block{block % depth}" for block in out_blocks]
    assert {(shape.stride, shape.channels) for shape in shapes.values()} == {(16, backbone.net.model.embed_dim)}
    levels = {name.split(".")[0] for name, _ in backbone.named_parameters()} - {"net"}
    assert levels == {f"simfp_{i}" if len(out_blocks) == 1 else f"p{i}" for i in (2, 3, 4, 5)}


@PYRAMIDS
def test_every_weight_of_a_norm_is_in_a_layer_that_optimizers_know_as_a_norm(out_blocks):
    backbone = build("MODEL.VIT.OUT_BLOCKS", out_blocks)
    vectors = [name for name, p in backbone.named_parameters() if p.ndim == 1 and not name.startswith("net.")]
    layers = {name.rpartition(".")[0] for name in vectors if name.endswith(".weight")}
    assert len(layers) >= 8 and all(isinstance(backbone.get_submodule(layer), nn.LayerNorm) for layer in layers)


@PYRAMIDS
def test_images_are_padded_to_whole_patches_of_the_smallest_map(out_blocks):
    model = build_model(tiny_cfg("MODEL.VIT.OUT_BLOCKS", out_blocks)).eval()
    images = model.preprocess_image([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8)}])
    assert images.tensor.shape == (1, 3, 64, 96) and images.image_sizes == [(50, 70)]


def test_with_a_checkpoint_the_pretrained_weights_are_not_read():
    backbone = build("MODEL.VIT.WEIGHTS", "missing.pth", "MODEL.WEIGHTS", "model_final.pth")
    assert not backbone.net.model.blocks[3].attn.qkv.a.any()  # nothing was decomposed: the checkpoint brings A and B


def test_no_gradient_work_is_spent_below_the_first_trainable_parameter():
    backbone = build()
    requires_grad = []
    for block in backbone.net.model.blocks:
        block.register_forward_hook(lambda module, x, y: requires_grad.append((x[0].requires_grad, y.requires_grad)))
    backbone(torch.randn(1, 3, 64, 96))
    assert requires_grad[:3] == [(False, False), (False, False), (False, True)]


def test_blocks_after_the_last_one_asked_for_are_not_computed():
    backbone = build("MODEL.VIT.OUT_BLOCKS", [3])
    ran = []
    for index, block in enumerate(backbone.net.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    backbone(torch.randn(1, 3, 64, 96))
    assert ran == [0, 1, 2, 3]


def test_only_adapters_and_biases_of_adapted_layers_train():
    backbone = build()
    for name, parameter in backbone.net.model.named_parameters():
        layer = backbone.net.model.get_submodule(name.rpartition(".")[0])
        expected = isinstance(layer, SomaLinear) and name.rsplit(".")[-1] in ("a", "b", "bias")
        assert parameter.requires_grad == expected, name
    assert not any(
        ".bias" in n for n, p in build("MODEL.ADAPTER.TRAIN_BIAS", False).net.named_parameters() if p.requires_grad
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
    adapted = build("MODEL.VIT.WEIGHTS", path).net.model
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


@pytest.fixture
def weights():
    """Of test_vit, by name."""
    return timm.create_model("test_vit", num_classes=0).state_dict()


def load(state, path, img_size=(64, 96)):
    torch.save(state, path)
    return create_timm_vit("test_vit", str(path), 16, img_size)


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_weights_in_a_training_checkpoint_and_in_half_precision_are_loaded(tmp_path, weights, key):
    vit = load({key: {name: w.half() for name, w in weights.items()}, "epoch": 3}, tmp_path / "vit.pth")
    for name in ("blocks.0.attn.qkv.weight", "blocks.5.mlp.fc2.bias", "norm.weight"):
        assert torch.equal(vit.get_parameter(name), weights[name].half().float())


def test_a_file_with_a_classifier_is_loaded_without_it(tmp_path):
    weights = timm.create_model("test_vit", num_classes=5).state_dict()
    assert "head.weight" in weights
    vit = load(weights, tmp_path / "vit.pth")
    assert torch.equal(vit.blocks[2].mlp.fc1.weight, weights["blocks.2.mlp.fc1.weight"])


def test_each_missing_or_foreign_weight_is_an_error_that_names_it(tmp_path, weights):
    lacking = {name: w for name, w in weights.items() if name != "blocks.3.norm1.bias"}
    with pytest.raises(
        RuntimeError, match=r"vit.pth does not hold .*test_vit: 1 weights are missing.*blocks.3.norm1.bias"
    ):
        load(lacking, tmp_path / "vit.pth")
    with pytest.raises(RuntimeError, match=r"1 of its weights have no place.*blocks.6.norm1.bias"):
        load({**weights, "blocks.6.norm1.bias": torch.zeros(64)}, tmp_path / "vit.pth")
    with pytest.raises(RuntimeError, match=r"(?s)does not hold the weights of test_vit: .*size mismatch"):
        load({**weights, "blocks.3.norm1.bias": torch.zeros(3)}, tmp_path / "vit.pth")
    with pytest.raises(RuntimeError, match="does not hold the weights of test_vit"):
        load({"something.else": torch.zeros(3)}, tmp_path / "vit.pth")


def test_loading_weights_draws_as_many_random_numbers_as_random_weights_do(tmp_path, weights):
    drawn = []
    torch.save(weights, tmp_path / "vit.pth")
    for file in ("", str(tmp_path / "vit.pth")):
        torch.manual_seed(0)
        create_timm_vit("test_vit", file, 16, (64, 96))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)  # so that pyramid and head start alike


def test_position_embeddings_of_an_oblong_image_keep_their_rows(tmp_path):
    oblong = timm.create_model("test_vit", num_classes=0, img_size=(32, 128))
    with torch.no_grad():  # brighter to the right and nothing else
        oblong.pos_embed[:, -16:] = torch.arange(8.0).repeat(2)[None, :, None]
    path = str(tmp_path / "vit.safetensors")
    save_file(oblong.state_dict(), path, metadata={"img_size": "[32, 128]"})
    assert torch.equal(create_timm_vit("test_vit", path, 16, (32, 128)).pos_embed, oblong.pos_embed)
    rows = create_timm_vit("test_vit", path, 16, (64, 128)).pos_embed[0, -32:, 0].view(4, 8)
    torch.testing.assert_close(rows, torch.arange(8.0).expand(4, -1))


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (["MODEL.VIT.NAME", "vit_titanic"], ValueError, "timm .* has no model 'vit_titanic'"),
        (
            ["MODEL.VIT.NAME", "test_vit.nowhere"],
            ValueError,
            "no pretrained weights 'test_vit.nowhere'. It has .*r160_in1k",
        ),
        (["MODEL.VIT.WEIGHTS", "missing.pth"], FileNotFoundError, "'missing.pth', which does not exist"),
        (
            ["MODEL.VIT.WEIGHTS", "missing.safetensors"],
            FileNotFoundError,
            "'missing.safetensors', which does not exist",
        ),
        (["MODEL.VIT.IMG_SIZE", [60, 96]], ValueError, r"IMG_SIZE is \[60, 96\]: .* multiples of PATCH_SIZE 16"),
        (["MODEL.VIT.IMG_SIZE", [64]], ValueError, r"IMG_SIZE is \[64\]: give \[height, width\]"),
        (["MODEL.VIT.FROZEN_BLOCKS", 99], ValueError, r"FROZEN_BLOCKS is 99, outside 0\.\.6"),
        (["MODEL.VIT.FROZEN_BLOCKS", 6], ValueError, "No block is left to adapt"),
        (["MODEL.VIT.OUT_BLOCKS", [1, 2]], ValueError, "OUT_BLOCKS has 2 blocks"),
        (["MODEL.VIT.OUT_BLOCKS", []], ValueError, "OUT_BLOCKS has 0 blocks"),
        (["MODEL.VIT.OUT_BLOCKS", [17]], ValueError, "blocks 0..5"),
        (["MODEL.VIT.OUT_BLOCKS", [5, 2, 3, 4]], ValueError, r"OUT_BLOCKS \[5, 2, 3, 4\] must be in increasing order"),
        (["MODEL.VIT.OUT_BLOCKS", [2, 3, 4, 4]], ValueError, "increasing order"),
        (["MODEL.VIT.PATCH_SIZE", 14, "MODEL.VIT.IMG_SIZE", [56, 84]], ValueError, "PATCH_SIZE is 14.*set 16"),
        (["MODEL.VIT.OUT_BLOCKS", [3], "MODEL.ADAPTER.BLOCKS", [3, 5]], ValueError, "blocks after 3.*not computed"),
        (["MODEL.ADAPTER.BLOCKS", [1, 4]], ValueError, "reaches into the 2 MODEL.VIT.FROZEN_BLOCKS"),
        (["MODEL.ADAPTER.NAME", "sorcery"], ValueError, "(?s)'sorcery'.*one of.*soma"),
    ],
)
def test_wrong_settings_name_value_and_remedy(opts, error, message):
    with pytest.raises(error, match=message):
        build(*opts)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("resnet18", "not a ViT"),
        ("swin_tiny_patch4_window7_224", "not a ViT"),
        ("hiera_tiny_224", "Hiera takes no patch_size"),
        ("cait_xxs24_224", "Cait has no option to take images of another size"),
        ("naflexvit_base_patch16_gap", "timm cannot build it with .*dynamic_img_size"),
        ("vit_small_r26_s32_224", "timm cannot build it with .*AssertionError"),
    ],
)
def test_a_model_that_cannot_be_a_backbone_is_an_error_with_reason_and_remedy(name, reason):
    with pytest.raises(ValueError, match=f"MODEL.VIT.NAME '{name}'.*{reason}.*Choose another MODEL.VIT.NAME"):
        create_timm_vit(name, "", 16, (64, 96))


def test_segment_anythings_vit_takes_any_size_without_being_asked():
    vit = TimmViT(create_timm_vit("samvit_base_patch16", "", 16, (64, 96)), [-1])
    assert vit(torch.randn(1, 3, 64, 128))["block11"].shape == (1, 768, 4, 8)


def test_freezing_matches_whole_names_and_a_pattern_without_match_is_an_error():
    vit = timm.create_model("test_vit")
    assert list(match_modules(vit, [r"blocks\.[01]"])) == ["blocks.0", "blocks.1"]
    with pytest.raises(ValueError, match="'block' matches no module"):
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
