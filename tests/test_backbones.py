"""Every family of configs/backbones: built from its config at a small size, adapted, trained, merged and exported."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn

from soma_det import Trainer
from soma_det.adapters import find_adapter_layers, merge
from soma_det.checkpoint.exported import export_detector, load_exported, with_plain_vit
from soma_det.config import setup_cfg
from soma_det.engine.trainer import _recipe_hooks
from soma_det.modeling.backbone.build import create_pretrained
from soma_det.modeling.backbone.hierarchical import TimmHierarchy, create_timm_hierarchy
from soma_det.modeling.backbone.input_size import InputSize
from soma_det.modeling.backbone.timm_vit import TimmViT, create_timm_vit, find_vits
from soma_det.modeling.freezing import match_modules

CONFIGS = Path(__file__).parents[1] / "configs" / "backbones"
BASE = CONFIGS.parent / "Base-SoMA.yaml"
HIERARCHICAL = "build_soma_hierarchical_backbone"
RANK, FROZEN = 2, 2
SIZE = (64, 96)
PLAIN = dict(depth=4, embed_dim=48, num_heads=3)


class Family(NamedTuple):
    """What makes timm's class of a config's model small.

    Attributes:
        size: keyword arguments of its constructor.
        linears: layers that are adapted in each of the blocks that are not frozen.
        blocks: of the small model, in all stages.
    """

    size: dict
    linears: int = 4
    blocks: int = 4


FAMILIES = {
    "dinov2_b": Family(PLAIN),
    "dinov2_reg_b": Family(PLAIN),
    "dinov3_b": Family(PLAIN),
    "eva02_b": Family(PLAIN, linears=7),  # q, k, v, proj, fc1_g, fc1_x, fc2
    "sam_b": Family(PLAIN | {"global_attn_indexes": (1, 3), "window_size": 3}),
    "clip_b": Family(PLAIN),
    "siglip2_b": Family(PLAIN),
    "deit3_b": Family(PLAIN),
    "beitv2_b": Family(PLAIN),
    "hiera_s": Family(dict(stages=(1, 1, 2, 1), embed_dim=16, num_heads=1), blocks=5),
    "swin_b": Family(dict(depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8), window_size=2), blocks=5),
    "convnext_b": Family(dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)), linears=2, blocks=5),
}
STAGED, ONE_SIZE = ("hiera_s", "swin_b", "convnext_b"), ("beitv2_b", "hiera_s")
EACH = pytest.mark.parametrize("name", FAMILIES)
create_model = timm.create_model


@pytest.fixture
def shrink(monkeypatch):
    """A function that makes timm build the models of a family small."""

    def small(name, **more):
        size = FAMILIES[name].size | more
        monkeypatch.setattr(timm, "create_model", lambda model, **options: create_model(model, **{**options, **size}))

    return small


@pytest.fixture
def config(shrink, tmp_path):
    """A function that gives a family's config at a small size, with a file of random weights that hide nothing."""

    def small_cfg(name, *opts):
        shrink(name)
        small = ["MODEL.VIT.FROZEN_BLOCKS", FROZEN, "MODEL.PYRAMID.OUT_CHANNELS", 16, "MODEL.ADAPTER.RANK", RANK]
        small += ["MODEL.VIT.IMG_SIZE", list(SIZE), "INPUT.AUGMENTATION.CROP_SIZE", list(SIZE)]
        small += ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", False]
        small += [] if name in STAGED else ["MODEL.VIT.OUT_BLOCKS", [0, 1, 2, 3]]
        path = str(tmp_path / f"{name}.safetensors")
        cfg = setup_cfg(str(CONFIGS / f"{name}.yaml"), [*small, "MODEL.VIT.WEIGHTS", "", *opts])
        plain = create_pretrained(cfg, "")
        for parameter in plain.parameters():  # LayerScale and some norms start at zero or near it
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0.5, 0.1)
        sizes = {} if name in ("sam_b", *STAGED) else {"img_size": json.dumps(SIZE)}
        save_file(plain.state_dict(), path, sizes)
        return setup_cfg(str(CONFIGS / f"{name}.yaml"), [*small, "MODEL.VIT.WEIGHTS", path, *opts])

    return small_cfg


def features_of(model: nn.Module) -> nn.Module:
    """The timm model inside a detector, as a backbone."""
    (net,) = find_vits(model).values()
    return net


def pretrained(cfg):
    """The plain timm model with the config's weights."""
    return create_pretrained(cfg, cfg.MODEL.VIT.WEIGHTS).eval()


def error(x: dict, reference: dict) -> float:
    """The largest relative error of features by name."""
    return max(((x[name] - reference[name]).norm() / reference[name].norm()).item() for name in reference)


def move(model: nn.Module) -> None:
    """A change of everything that trains, of the size of a training's."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_every_config_has_its_family_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(FAMILIES)


@EACH
def test_injection_changes_no_output_and_merging_keeps_the_trained_one(name, config):
    cfg, x = config(name), torch.randn(2, 3, *SIZE)
    net = features_of(build_model(cfg).eval())
    plain = (TimmHierarchy if name in STAGED else lambda vit: TimmViT(vit, [0, 1, 2, 3]))(pretrained(cfg))
    assert error(net(x), plain(x)) < 1e-5
    move(net)
    trained = net(x)
    assert error(trained, plain(x)) > 1e-3
    assert len(merge(net.model)) == FAMILIES[name].linears * (FAMILIES[name].blocks - FROZEN)
    assert error(net(x), trained) < 1e-5
    assert net.state_dict().keys() == plain.state_dict().keys()


@EACH
def test_only_adapters_pyramid_and_heads_train_and_all_of_the_adapters_do(name, config):
    cfg = config(name)
    model = Trainer.build_model(cfg).train()
    net, plain = features_of(model), pretrained(cfg)
    expected = 0
    for layer_name, layer in find_adapter_layers(net.model).items():
        linear = plain.get_submodule(layer_name)
        assert layer.parts == (3 if layer_name.endswith("qkv") else 1)
        expected += RANK * (layer.parts * linear.in_features + linear.out_features)
        expected += 0 if linear.bias is None else linear.out_features
    trained = {parameter for parameter in net.parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in trained) == expected

    optimizer = Trainer.build_optimizer(cfg, model)
    groups = {group["name"]: set(group["params"]) for group in optimizer.param_groups}
    assert groups["backbone"] == trained and not any(trained & groups[other] for other in groups if other != "backbone")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    features = model.backbone(torch.randn(1, 3, *SIZE))
    sum(feature.square().mean() for feature in features.values()).backward()
    optimizer.step()
    after = model.state_dict()
    moved = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    pyramid = {key for key in after if key.startswith("backbone.") and ".model." not in key}
    own = {key for key, parameter in model.named_parameters() if parameter in trained}
    assert own <= moved <= own | pyramid


@EACH
def test_the_frozen_part_is_the_embedding_of_the_patches_and_the_first_blocks(name, config):
    cfg = config(name, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    model = build_model(cfg)
    (freezing,) = [hook for hook in _recipe_hooks(cfg, model, 0) if hasattr(hook, "patterns")]
    frozen = list(match_modules(model, freezing.patterns))
    vit, blocks = features_of(model).model, {"swin_b": "layers", "convnext_b": "stages"}.get(name)
    expected = [f"{blocks}.{stage}.blocks.0" if blocks else f"blocks.{stage}" for stage in range(FROZEN)]
    expected.append("stem" if name == "convnext_b" else "patch_embed")
    assert sorted(key.split(".model.")[1] for key in frozen) == sorted(expected)
    assert not any(p.requires_grad for key in expected for p in vit.get_submodule(key).parameters())


@EACH
def test_activation_checkpointing_is_there_and_changes_no_output(name, config):
    cfg, x = config(name, "MODEL.VIT.ACTIVATION_CHECKPOINTING", True), torch.randn(1, 3, *SIZE)
    net = features_of(build_model(cfg)).train()
    checkpointed = net(x)
    net.model.set_grad_checkpointing(False)
    assert error(checkpointed, net(x)) < 1e-6


@EACH
def test_an_exported_detector_has_the_features_of_the_trained_one(name, config, tmp_path):
    cfg, x = config(name), torch.randn(1, 3, *SIZE)
    model = build_model(cfg).eval()
    move(model)
    path = tmp_path / "detector.safetensors"
    export_detector(model, path, pretrained(cfg))
    other = build_model(with_plain_vit(cfg)).eval()
    load_exported(other, path)
    assert error(other.backbone(x), model.backbone(x)) < 1e-5


@EACH
def test_maps_have_the_size_of_the_image_and_images_are_padded_where_the_model_takes_one_size(name, config):
    net = features_of(build_model(config(name)).eval())
    one_size = name in ONE_SIZE
    sizes = [SIZE, (32, 64)] if one_size else [SIZE, (32, 64), (160, 128)]
    for height, width in sizes:
        x = torch.randn(2, 3, height, width)
        maps = net(x)
        for key, shape in net.output_shape().items():
            assert maps[key].shape == (2, shape.channels, height // shape.stride, width // shape.stride)
        padded = net(F.pad(x, (0, 96 - width, 0, 64 - height))) if one_size else maps
        for key, feature in maps.items():
            assert torch.equal(feature, padded[key][..., : feature.shape[2], : feature.shape[3]])
    if one_size:
        with pytest.raises(ValueError, match="160 x 128 pixels, .* 64 x 96 at most: set MODEL.VIT.IMG_SIZE to"):
            net(torch.randn(1, 3, 160, 128))


@pytest.mark.parametrize("name", STAGED)
def test_a_hierarchical_detector_detects_on_levels_of_strides_4_to_128(name, config):
    model = build_model(config(name)).eval()
    strides = {level: shape.stride for level, shape in model.backbone.output_shape().items()}
    assert strides == {f"p{level}": 2**level for level in range(2, 8)}
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8), "height": 50, "width": 70}])
    assert output["instances"].has("pred_boxes")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.backbone(torch.randn(1, 3, *SIZE))
    assert {feature.dtype for feature in features.values()} == {torch.float32}


def test_every_norm_of_the_hierarchical_pyramid_is_a_layer_that_optimizers_know_as_a_norm(config):
    backbone = build_model(config("convnext_b")).backbone
    vectors = [name for name, p in backbone.named_parameters() if p.ndim == 1 and not name.startswith("bottom_up.")]
    layers = {name.rpartition(".")[0] for name in vectors}
    assert len(layers) == 8 and all(isinstance(backbone.get_submodule(layer), nn.LayerNorm) for layer in layers)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_the_first_rows_of_a_swin_do_not_see_the_last_ones(name, shrink):
    """As they do in timm's where windows do not divide the map: 64 rows of stride 4, and windows of 7."""
    shrink("swin_b", depths=(2, 1, 1, 1), window_size=7)
    net = TimmHierarchy(create_timm_hierarchy(name, "", (256, 32))).eval()
    for block in net.model.layers[0].blocks:
        nn.init.ones_(block.norm1.weight)  # zero at the start of a Swin V2
    x = torch.randn(1, 3, 256, 32)
    changed = x.clone()
    changed[:, :, -16:] += 3

    def see_the_last_ones():
        with torch.no_grad():
            one, other = net(x)["stage0"], net(changed)["stage0"]
        assert not torch.equal(one[:, :, -1], other[:, :, -1])
        return not torch.equal(one[:, :, :32], other[:, :, :32])

    assert not see_the_last_ones()
    net.input_size = InputSize()
    assert see_the_last_ones()


@pytest.mark.parametrize("attributes", [{}, {"img_size": "[64, 64]"}])
def test_sams_tables_of_relative_positions_stay_as_in_the_file(attributes, shrink, tmp_path):
    shrink("sam_b")
    size = {"img_size": 64} if attributes else {}
    saved = timm.create_model("samvit_base_patch16", num_classes=0, **size)
    nn.init.normal_(saved.blocks[1].attn.rel_pos_h)
    path = str(tmp_path / "sam.safetensors")
    save_file(saved.state_dict(), path, attributes)
    vit = create_timm_vit("samvit_base_patch16", path, 16, SIZE)
    assert torch.equal(vit.blocks[1].attn.rel_pos_h, saved.blocks[1].attn.rel_pos_h)


def test_beits_relative_positions_are_resampled_to_the_image(shrink, tmp_path):
    """A table that grows by one per column of the grid keeps doing so in the middle of a larger grid."""
    shrink("beitv2_b")
    saved = timm.create_model("beitv2_base_patch16_224", num_classes=0, img_size=64)
    table = saved.blocks[0].attn.relative_position_bias_table
    columns = torch.arange(7.0).repeat(7)
    with torch.no_grad():
        table[:-3] = columns[:, None]
    save_file(saved.state_dict(), str(tmp_path / "beit.safetensors"))
    vit = create_timm_vit("beitv2_base_patch16_224", str(tmp_path / "beit.safetensors"), 16, SIZE)
    resampled = vit.blocks[0].attn.relative_position_bias_table[:-3, 0].view(2 * 4 - 1, 2 * 6 - 1)
    assert torch.allclose(resampled[:, 5], torch.full((7,), 3.0), atol=1e-3)
    assert (resampled.diff(dim=1) > 0).all() and torch.allclose(resampled, resampled[:1].expand(7, -1), atol=1e-3)


@pytest.mark.parametrize(
    "model, reason",
    [
        ("resnet18", r"not one of the hierarchical models .* but timm's ResNet of \[2, 4, 8, 16, 32\]"),
        ("tiny_vit_5m_224", "but timm's TinyVit"),
        (
            "vit_tiny_patch16_224",
            "VisionTransformer.*for a plain ViT set MODEL.BACKBONE.NAME to build_soma_vit",
        ),
        ("hiera_tiny_224", r"IMG_SIZE is \[64, 96\], and 'hiera_tiny_224' .* choose a hiera_\*_abswin_\*"),
    ],
)
def test_a_model_that_is_not_supported_is_an_error_with_the_remedy(model, reason):
    with pytest.raises(ValueError, match=reason):
        create_timm_hierarchy(model, "", SIZE)


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "hiera_tiny_224", "convnext_tiny"])
def test_a_hierarchical_model_in_a_plain_vits_place_is_told_its_backbone(model):
    with pytest.raises(ValueError, match="set MODEL.BACKBONE.NAME to build_soma_hierarchical_backbone"):
        create_timm_vit(model, "", 16, SIZE)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.VIT.PATCH_SIZE", 8], "PATCH_SIZE is 8, which is for plain ViTs: leave it out"),
        (["MODEL.VIT.OUT_BLOCKS", [0, 1, 2, 3]], "OUT_BLOCKS is .*: leave it out with build_soma_hierarchical"),
        (["MODEL.VIT.IMG_SIZE", [48, 96]], "multiples of the last stride 32"),
        (["MODEL.VIT.FROZEN_BLOCKS", 6], r"FROZEN_BLOCKS is 6, outside 0\.\.5"),
        (["MODEL.ADAPTER.NAME", "rein"], "needs a plain ViT of timm, and SwinTransformer has no .*'soma' or 'lora'"),
    ],
)
def test_wrong_settings_of_a_hierarchical_backbone_name_the_remedy(opts, message, config):
    with pytest.raises(ValueError, match=message):
        build_model(config("swin_b", *opts))


@pytest.mark.parametrize("name", ONE_SIZE)
def test_crops_larger_than_a_models_only_size_are_an_error_when_it_is_built(name, config):
    cfg = config(name, "INPUT.AUGMENTATION.CROP_SIZE", [128, 96])
    with pytest.raises(ValueError, match=r"CROP_SIZE is \[128, 96\], and .* MODEL.VIT.IMG_SIZE \[64, 96\] alone"):
        build_model(cfg)
