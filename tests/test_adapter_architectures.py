"""Adapting models of timm that are built in other ways than the plain ViT, at sizes of a second."""

import copy
from typing import NamedTuple

import pytest
import timm
import torch
from adapter_cases import HAS_PEFT, PEFT
from torch import nn

from soma_det.adapters import (
    ADAPTERS,
    AdaptFormerConfig,
    BiasesConfig,
    DoraConfig,
    FullConfig,
    LoraConfig,
    MoaConfig,
    OsfConfig,
    ReinConfig,
    SomaConfig,
    VptConfig,
    adapt,
    find_adapter_layers,
    load_adapter,
    merge,
    save_adapter,
)

RANK = 2
SMALL = dict(depth=2, embed_dim=48, num_heads=3)
SWIN = dict(depths=(1, 2), embed_dim=24, num_heads=(2, 4), window_size=4)


class Architecture(NamedTuple):
    """One of timm's, at a small size.

    Attributes:
        layers: number of linear layers in attention and MLP of all blocks.
        parts: stacked weights of one layer, by the layer's last name, where there are several.
    """

    model: str
    pixels: int
    size: dict
    layers: int
    parts: dict


ARCHITECTURES = {
    "plain": Architecture("vit_tiny_patch16_224", 32, SMALL, 8, {"qkv": 3}),
    "packed_swiglu": Architecture("vit_giant_patch14_dinov2", 28, SMALL, 8, {"qkv": 3, "fc1": 2}),
    "eva02_fused": Architecture("eva02_tiny_patch14_224", 28, SMALL, 8, {"qkv": 3, "fc1": 2}),
    "eva02_separate": Architecture("eva02_base_patch14_224", 28, SMALL, 14, {}),
    "swin": Architecture("swin_tiny_patch4_window7_224", 32, SWIN, 12, {"qkv": 3}),
    "swin_v2": Architecture("swinv2_tiny_window8_256", 32, SWIN, 12, {"qkv": 3}),
    "convnext": Architecture("convnext_tiny", 64, dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40)), 8, {}),
    "hiera": Architecture("hiera_tiny_224", 64, dict(stages=(1, 1, 1, 1), embed_dim=16, num_heads=1), 16, {"qkv": 3}),
    # The first stage has no attention; a fused qkv stacks one head after the other, so it counts as one weight.
    "tiny_vit": Architecture(
        "tiny_vit_5m_224", 64, dict(depths=(1, 1, 1, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4)), 12, {}
    ),
    "sam": Architecture("samvit_base_patch16", 64, SMALL, 8, {"qkv": 3}),
    "beit_v2": Architecture("beitv2_base_patch16_224", 32, SMALL, 8, {"qkv": 3}),
    "dino_v3": Architecture("vit_small_plus_patch16_dinov3", 32, SMALL, 10, {"qkv": 3}),
}
READ_DIRECTLY = ("eva02_fused", "swin_v2", "beit_v2")  # the attention reads the weight of qkv
METHODS = pytest.mark.parametrize("config", [SomaConfig(rank=RANK), LoraConfig(rank=RANK)], ids=lambda c: c.name)
# Of peft two: the others differ in their start alone.
BY_MODULE = pytest.mark.parametrize("method", ["moa", *(("peft_lora", "dora") if HAS_PEFT else ())])
ALL = pytest.mark.parametrize("name", ARCHITECTURES)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model, with random weights that hide nothing, and an input for it."""
    architecture = ARCHITECTURES[name]
    size = {} if name in ("convnext", "tiny_vit") else {"img_size": architecture.pixels}
    model = timm.create_model(architecture.model, num_classes=0, **size, **architecture.size).eval()
    for parameter in model.parameters():  # LayerScale and some norms start at zero or near it
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.1)
    return model, torch.randn(2, 3, architecture.pixels, architecture.pixels)


def relative_error(x, reference):
    return (x - reference).norm() / reference.norm()


def move(model, names):
    """A change of everything that trains, of the size of a training's."""
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(0.05 * torch.randn_like(model.get_parameter(name)))


@ALL
@METHODS
def test_adapting_changes_no_output_and_all_factors_get_a_gradient(name, config):
    model, x = build(name)
    before = model(x)
    names = adapt(model, config)
    assert relative_error(model(x), before) < 1e-5
    if config.name == "lora":  # whose B of zero hides A
        move(model, [name for name in names if name.endswith(".b")])
    model.train()
    model(x).square().sum().backward()
    gradients = {name: model.get_parameter(name).grad for name in names}
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert not silent
    assert all(p.grad is None for n, p in model.named_parameters() if n not in names)


@ALL
def test_all_but_the_largest_components_can_be_trained_and_merged_everywhere(name):
    model, x = build(name)
    before = model(x)
    names = adapt(model, OsfConfig())
    assert relative_error(model(x), before) < 1e-5
    model(x).square().sum().backward()
    assert all(model.get_parameter(parameter).grad.any() for parameter in names)
    move(model, names)
    trained = model(x)
    assert relative_error(trained, before) > 1e-3
    merge(model)
    assert relative_error(model(x), trained) < 1e-5


@ALL
@METHODS
def test_layers_parts_and_parameters_are_those_counted_by_hand(name, config):
    plain, _ = build(name)
    model, architecture = copy.deepcopy(plain), ARCHITECTURES[name]
    names, expected = adapt(model, config), 0
    layers = find_adapter_layers(model)
    assert len(layers) == architecture.layers
    for layer_name, layer in layers.items():
        linear = plain.get_submodule(layer_name)
        assert layer.parts == architecture.parts.get(layer_name.rpartition(".")[2], 1), layer_name
        expected += RANK * (layer.parts * linear.in_features + linear.out_features)
        expected += 0 if linear.bias is None else linear.out_features
    assert sum(model.get_parameter(n).numel() for n in names) == expected
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(names)


def test_prompts_are_refused_where_a_table_of_relative_positions_has_no_room_for_them():
    model, _ = build("beit_v2")
    with pytest.raises(ValueError, match=r"vpt cannot adapt blocks\.0: its relative positions"):
        adapt(model, VptConfig())
    assert not find_adapter_layers(model)


def test_prompts_go_into_blocks_with_several_attentions_side_by_side():
    model = timm.create_model("vit_small_patch16_18x2_224", num_classes=0, img_size=32, **SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    names = adapt(model, VptConfig(tokens=3))
    model(x).square().sum().backward()
    assert model(x).shape == before.shape and all(model.get_parameter(name).grad.any() for name in names)


@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
def test_merging_leaves_nothing_of_peft_on_the_model():
    model, _ = build("plain")
    attributes = set(vars(model))
    adapt(model, DoraConfig(rank=RANK))
    merge(model)
    assert set(vars(model)) == attributes


@ALL
def test_soma_takes_the_minor_components_of_every_part(name):
    plain, _ = build(name)
    model = copy.deepcopy(plain)
    adapt(model, SomaConfig(rank=RANK))
    for layer_name, layer in find_adapter_layers(model).items():
        for index, weight in enumerate(plain.get_submodule(layer_name).weight.detach().double().chunk(layer.parts)):
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            a, b = layer.a[index].detach().double(), layer.b[index].detach().double()
            assert (u[:, :-RANK].T @ b).abs().max() < 1e-5 * s[0] and (vh[:-RANK] @ a.T).abs().max() < 1e-5 * s[0]
            assert torch.allclose(b @ a, (u[:, -RANK:] * s[-RANK:]) @ vh[-RANK:], atol=1e-6), layer_name
            assert torch.linalg.matrix_rank(b @ a) == RANK


@ALL
@METHODS
def test_merging_keeps_the_output_and_gives_back_the_plain_model(name, config):
    plain, x = build(name)
    model = copy.deepcopy(plain)
    move(model, adapt(model, config))
    trained = model(x)
    assert relative_error(trained, plain(x)) > 1e-3
    assert len(merge(model)) == ARCHITECTURES[name].layers
    assert relative_error(model(x), trained) < 1e-5
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()


@ALL
@METHODS
def test_a_saved_adapter_gives_the_same_output_on_the_plain_model(name, config, tmp_path):
    plain, x = build(name)
    model = copy.deepcopy(plain)
    move(model, adapt(model, config))
    save_adapter(model, tmp_path / "adapter.safetensors", plain)
    other = copy.deepcopy(plain)
    load_adapter(other, tmp_path / "adapter.safetensors")
    assert relative_error(other(x), model(x)) < 1e-5
    merge(other)
    assert relative_error(other(x), model(x)) < 1e-5


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in READ_DIRECTLY])
@BY_MODULE
def test_methods_that_put_modules_in_the_place_of_layers_work_where_layers_are_called(method, name):
    if method == "moa" and name == "convnext":
        pytest.skip("has no query, key and value")
    model, x = build(name)
    before = model(x)
    config = MoaConfig(experts="lora", ranks=(1, 2)) if method == "moa" else ADAPTERS[method](rank=RANK)
    names = adapt(model, config)
    assert relative_error(model(x), before) < 1e-5
    move(model, names)
    assert relative_error(model(x), before) > 1e-4


@pytest.mark.parametrize("name", READ_DIRECTLY)
@BY_MODULE
def test_they_refuse_a_weight_that_the_attention_reads_and_take_the_other_layers(method, name):
    model, x = build(name)
    modules = list(model.modules())
    config = MoaConfig(experts="lora", ranks=(1, 2)) if method == "moa" else ADAPTERS[method](rank=RANK)
    with pytest.raises(ValueError, match="attn.qkv: this attention reads its weight directly. Leave qkv out .*'soma'"):
        adapt(model, config)
    assert list(model.modules()) == modules
    before = model(x)
    move(model, adapt(model, config, targets=[r"attn\.proj"]))
    assert relative_error(model(x), before) > 1e-3


@pytest.mark.parametrize("config", [ReinConfig(rank=2), VptConfig(), AdaptFormerConfig()], ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["swin", "swin_v2", "convnext", "hiera", "tiny_vit", "sam"])
def test_methods_that_wrap_blocks_refuse_models_that_are_no_plain_vit(config, name):
    model, _ = build(name)
    modules = list(model.modules())
    message = f"needs a plain ViT of timm, and {type(model).__name__} has no .*'soma' or 'lora'"
    with pytest.raises(ValueError, match=message):
        adapt(model, config)
    assert list(model.modules()) == modules


def test_blocks_are_counted_through_the_stages():
    model, _ = build("swin")
    adapt(model, SomaConfig(rank=RANK), [1, 2], [r"mlp\.fc1"])
    assert list(find_adapter_layers(model)) == ["layers.1.blocks.0.mlp.fc1", "layers.1.blocks.1.mlp.fc1"]
    names = adapt(build("swin")[0], BiasesConfig(), [0])
    assert names and all(name.startswith("layers.0.blocks.0.") for name in names)
    with pytest.raises(ValueError, match=r"Blocks \[3\] do not exist: this model has blocks 0\.\.2"):
        adapt(build("swin")[0], SomaConfig(rank=RANK), [3])


# A model without blocks


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("method", ["soma", "lora", "moa", *(sorted(PEFT) if HAS_PEFT else ())])
def test_a_model_without_blocks_is_adapted_where_targets_say_and_its_adapter_can_be_saved(method, tmp_path):
    plain, x = perceptron(), torch.randn(5, 6)
    model, other = copy.deepcopy(plain), copy.deepcopy(plain)
    config = MoaConfig(experts="lora", ranks=(1, 2)) if method == "moa" else ADAPTERS[method](rank=RANK)
    names = adapt(model, config, targets=["0", "2"])
    assert list(find_adapter_layers(model)) == ["0", "2"]
    assert relative_error(model(x), plain(x)) < 1e-5
    move(model, names)
    save_adapter(model, tmp_path / "adapter.safetensors", plain)
    load_adapter(other, tmp_path / "adapter.safetensors")
    assert relative_error(model(x), plain(x)) > 1e-3
    assert relative_error(other(x), model(x)) < 1e-5


@pytest.mark.parametrize("config", [FullConfig(), BiasesConfig()], ids=lambda c: c.name)
def test_a_model_without_blocks_is_refused_by_methods_of_blocks(config):
    with pytest.raises(ValueError, match="Sequential has no blocks: choose a method that adapts linear layers"):
        adapt(perceptron(), config)
    with pytest.raises(ValueError, match=r"matches no linear layer; there are \['0', '2', '4'\]. Set the targets"):
        adapt(perceptron(), SomaConfig(rank=RANK))
