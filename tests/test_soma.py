"""What SoMA promises of the weights that it splits and of the layers that it replaces."""

import copy
import logging

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from soma_det.adapters import (
    FrozenConfig,
    LoraConfig,
    SomaConfig,
    SomaLinear,
    adapt,
    find_adapter_layers,
    merge,
    soma,
    split_components,
    split_minor_components,
)
from soma_det.adapters.selection import select_linears

SHAPES = [(24, 24), (20, 48), (48, 20)]
# timm's smallest models of every kind of attention that SoMA has to cope with
VITS = ["test_vit", "test_vit2", "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"]


def tiny_vit(name="test_vit"):
    size = dict(depth=3, embed_dim=48, num_heads=3) if not name.startswith("test_") else {}
    vit = timm.create_model(name, num_classes=0, img_size=64, patch_size=16, dynamic_img_size=True, **size).eval()
    for parameter_name, parameter in vit.named_parameters():
        if "gamma" in parameter_name:  # LayerScale starts near zero and would hide what the layers compute
            nn.init.ones_(parameter)
    return vit


def adapt_soma(model, blocks, **settings):
    """Adapt the model; returns the names of its new layers."""
    adapt(model, SomaConfig(**settings), blocks)
    return list(find_adapter_layers(model))


def relative_error(x, reference):
    return (x - reference).norm() / reference.norm()


def adapted(rank=2, parts=1, out_features=12, in_features=8, dtype=torch.float64, bias=True):
    return SomaLinear(nn.Linear(in_features, out_features, bias=bias).to(dtype), rank, parts)


def projector(vectors):
    """Onto the span of the columns."""
    q = torch.linalg.qr(vectors.double())[0]
    return q @ q.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_residual_plus_components_is_the_weight(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    residual, a, b = split_minor_components(weight, 4)
    assert a.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.allclose(residual + b @ a, weight.to(a.dtype), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_and_b_span_the_minor_subspace_and_not_the_major_one(shape):
    weight = torch.randn(shape)
    _, a, b = split_minor_components(weight, 4)
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    assert torch.allclose(projector(b), projector(u[:, -4:]), atol=1e-5)
    assert torch.allclose(projector(a.T), projector(vh[-4:].T), atol=1e-5)
    assert (u[:, :4].T @ b.double()).abs().max() < 1e-5
    assert (vh[:4] @ a.T.double()).abs().max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_those_of_the_exact_decomposition_split_evenly(shape):
    weight = torch.randn(shape)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    for components, part in (("minor", slice(-4, None)), ("major", slice(0, 4))):
        _, a, b = split_components(weight, 4, components)
        expected = (u[:, part] * s[part]) @ vh[part]
        assert torch.allclose((b @ a).double(), expected, atol=1e-5)
        assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-4)  # sqrt(S) on both sides


def test_random_components_are_singular_components_and_follow_the_seed():
    weight = torch.randn(20, 30)
    splits = [split_components(weight, 5, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    singular = torch.linalg.svdvals(weight)
    for value in torch.linalg.svdvals(splits[0][2] @ splits[0][1])[:5]:
        assert (singular - value).abs().min() < 1e-4
    assert torch.equal(splits[0][1], splits[1][1])
    assert not torch.equal(splits[0][1], splits[2][1])


def test_a_weight_of_lower_rank_is_split_into_finite_components():
    weight = torch.randn(16, 2) @ torch.randn(2, 16)
    for candidate in (weight, torch.zeros(16, 16)):
        residual, a, b = split_minor_components(candidate, 4)
        assert a.isfinite().all() and b.isfinite().all()
        assert torch.allclose(residual + b @ a, candidate, atol=1e-5)


@pytest.mark.parametrize("name", VITS)
def test_injection_changes_no_output(name):
    vit = tiny_vit(name)
    x = torch.randn(2, 3, 64, 64)
    before = vit(x)
    replaced = adapt_soma(vit, range(1, len(vit.blocks)), rank=4)
    assert len(replaced) >= 4, name
    assert relative_error(vit(x), before) < 1e-5, name


@pytest.mark.parametrize("name", VITS)
def test_merging_keeps_outputs_names_and_classes_of_the_plain_model(name):
    plain = tiny_vit(name)
    x = torch.randn(2, 3, 64, 64)
    vit = copy.deepcopy(plain)
    replaced = adapt_soma(vit, range(1, len(vit.blocks)), rank=4)
    with torch.no_grad():
        for layer in replaced:
            vit.get_submodule(layer).b.normal_(std=0.1)
    trained = vit(x)
    assert relative_error(trained, plain(x)) > 1e-3, name
    assert merge(vit) == replaced
    assert relative_error(vit(x), trained) < 1e-5, name
    assert vit.state_dict().keys() == plain.state_dict().keys(), name
    assert [type(m) for m in vit.modules()] == [type(m) for m in plain.modules()], name


def test_fused_qkv_is_decomposed_as_three_separate_weights():
    linear = nn.Linear(12, 36)
    layer = SomaLinear(linear, rank=2, parts=3)
    for index, weight in enumerate(linear.weight.chunk(3)):
        residual, a, b = split_minor_components(weight, 2)
        assert torch.equal(layer.a[index], a) and torch.equal(layer.b[index], b)
        assert torch.equal(layer.residual.chunk(3)[index], residual)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_gradcheck_in_double_precision(parts, bias):
    layer = adapted(parts=parts, bias=bias)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, p in layer.named_parameters() if p.requires_grad]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(call, (x, *(getattr(layer, name) for name in names)))


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_equal_those_of_the_two_branch_form(parts):
    layer = adapted(parts=parts, dtype=torch.float32)
    x = torch.randn(4, 7, 8, requires_grad=True)
    layer(x).square().sum().backward()
    gradients = [p.grad.clone() for p in (layer.a, layer.b, layer.bias, x)]
    layer.zero_grad(), x.grad.zero_()
    branch = torch.cat([x @ a.T @ b.T for a, b in zip(layer.a, layer.b)], dim=-1)
    (x @ layer.residual.T + branch + layer.bias).square().sum().backward()
    for ours, expected in zip(gradients, (layer.a.grad, layer.b.grad, layer.bias.grad, x.grad)):
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_autocast_computes_in_half_and_keeps_gradients_in_full_precision():
    layer = adapted(dtype=torch.float32)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), layer(x), atol=0.05)
    y.float().sum().backward()
    assert layer.a.grad.dtype == layer.b.grad.dtype == torch.float32


@pytest.mark.parametrize("parts", [1, 3])
def test_inputs_of_any_number_of_dimensions_have_the_gradients_of_their_rows(parts):
    layer = adapted(parts=parts)
    rows, weights = torch.randn(24, 8, dtype=torch.float64), torch.randn(24, 12, dtype=torch.float64)
    gradients = []
    for shape in [(24,), (4, 6), (2, 3, 4)]:
        x = rows.view(*shape, 8).clone().requires_grad_()
        (layer(x) * weights.view(*shape, 12)).sum().backward()
        gradients.append([x.grad.view(24, 8), layer.a.grad, layer.b.grad, layer.bias.grad])
        layer.zero_grad()
    for other in gradients[1:]:
        for gradient, expected in zip(other, gradients[0], strict=True):
            assert torch.allclose(gradient, expected, rtol=1e-12)


def test_a_change_of_the_factors_before_the_backward_pass_is_an_error_and_not_a_wrong_gradient():
    layer = adapted()
    y = layer(torch.randn(3, 8, dtype=torch.float64, requires_grad=True)).sum()
    with torch.no_grad():
        layer.b.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_activation_checkpointing_gives_the_same_gradients():
    layer = adapted(dtype=torch.float32)
    x = torch.randn(3, 8)
    layer(x).square().sum().backward()
    expected = layer.a.grad.clone()
    layer.zero_grad()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert torch.allclose(layer.a.grad, expected)


def test_the_weight_of_an_adapted_layer_can_be_used_directly():
    layer = adapted(parts=3)
    x = torch.randn(5, 8, dtype=torch.float64)
    assert torch.allclose(nn.functional.linear(x, layer.weight, layer.bias), layer(x))


def test_a_dense_state_does_not_fit_an_adapted_model_nor_the_reverse():
    dense, vit = tiny_vit(), tiny_vit()
    adapt_soma(vit, [1], rank=2)
    with pytest.raises(RuntimeError, match="Missing key.*residual"):
        vit.load_state_dict(dense.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*residual"):
        dense.load_state_dict(vit.state_dict())


@pytest.mark.parametrize(
    "settings, blocks, targets, message",
    [
        (dict(rank=1000), [1], (), r"Rank 1000 is outside 1\.\.\d+"),
        (dict(rank=2), [99], (), r"Blocks \[99\] do not exist"),
        (dict(rank=2), [], (), "No block is left to adapt"),
        (dict(rank=2), [1], ["attn.qkv", "mlp.fc7"], "'mlp.fc7' matches no linear layer"),
    ],
)
@pytest.mark.parametrize("initialize", [True, False])
def test_wrong_arguments_raise_and_leave_the_model_as_it_was(settings, blocks, targets, message, initialize):
    vit = tiny_vit()
    before = list(vit.modules())
    with pytest.raises(ValueError, match=message):
        adapt(vit, SomaConfig(**settings), blocks, targets, initialize=initialize)
    assert list(vit.modules()) == before and all(p.requires_grad for p in vit.parameters())


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(rank=0), "MODEL.ADAPTER.RANK is 0: give 1 or more"),
        (dict(components="middle"), "COMPONENTS is 'middle': choose one of .*'minor'"),
        (dict(order="late"), "ORDER is 'late': choose one of .*'load_first'"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(settings, message):
    with pytest.raises(ValueError, match=message):
        SomaConfig(**settings)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match=r"Only a matrix can be split, not a weight of shape \(2, 3, 4\)"):
        split_minor_components(torch.zeros(2, 3, 4), 1)
    with pytest.raises(ValueError, match="Unknown components 'middle'"):
        split_components(torch.zeros(3, 4), 1, "middle")
    with pytest.raises(ValueError, match="12 output features do not divide into 5"):
        SomaLinear(nn.Linear(3, 12), 1, parts=5)


def test_merging_a_plain_model_does_nothing():
    vit = tiny_vit()
    adapt(vit, FrozenConfig())
    before = list(vit.modules())
    assert merge(vit) == [] and list(vit.modules()) == before


def test_with_no_blocks_named_all_are_adapted():
    vit = tiny_vit()
    assert len(adapt_soma(vit, None, rank=2)) == 4 * len(vit.blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [SomaConfig(rank=4), LoraConfig(rank=4)], ids=lambda config: config.name)
def test_a_vit_in_half_precision_can_be_adapted_trained_and_merged_and_keeps_its_precision(dtype, config):
    vit = tiny_vit().to(dtype)
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    pretrained, before = copy.deepcopy(vit.state_dict()), vit(x)
    names = adapt(vit, config)
    assert relative_error(vit(x), before) < 0.02 and vit(x).dtype == dtype
    vit(x).float().square().mean().backward()
    parameters = {name: vit.get_parameter(name) for name in names}
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in parameters.values())
    assert {p.dtype for p in parameters.values() if p.ndim == 3} == {
        torch.float32 if config.name == "soma" else dtype  # the split does not round; LoRA's factors are of the model
    }
    merge(vit)
    assert {p.dtype for p in vit.parameters()} == {dtype}
    for name, weight in vit.state_dict().items():  # at the start, rounding once gives the pretrained bits back
        assert torch.equal(weight, pretrained[name]), name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("before, after", [(torch.float32, torch.float16), (torch.float16, torch.float16)])
def test_a_layer_that_was_converted_after_adapting_is_merged_in_its_new_precision(bias, before, after):
    layer = SomaLinear(nn.Linear(12, 8, bias=bias).to(before), 2).to(after)
    assert {p.dtype for p in layer.merged().parameters()} == {after}


def test_merging_in_half_precision_rounds_the_residual_and_the_components_as_one():
    layer = SomaLinear(nn.Linear(12, 8).to(torch.bfloat16), 2)
    nn.init.normal_(layer.b)
    expected = (layer.residual + layer.b[0] @ layer.a[0]).to(torch.bfloat16)
    assert torch.equal(layer.merged().weight, expected)


def test_a_second_derivative_is_an_error_and_not_a_wrong_number():
    layer = adapted()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_random_start_of_the_public_codes_order_is_that_of_a_linear_layer():
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32)
    pretrained = vit.blocks[0].mlp.fc1.weight.detach().clone()
    names = adapt(vit, SomaConfig(rank=192, order="decompose_first", seed=3), [0])
    layer = vit.blocks[0].mlp.fc1
    assert torch.equal(layer.residual, pretrained)
    # With all components, B A is the whole of the decomposed weight: uniform with std 1 / sqrt(3 d_in).
    start = (layer.b[0] @ layer.a[0]).detach()
    bound = 192**-0.5
    assert abs(start.std() * (3 * 192) ** 0.5 - 1) < 0.01 and 0.99 * bound < start.abs().max() < 1.001 * bound
    assert {"blocks.0.mlp.fc1.a", "blocks.0.mlp.fc1.b", "blocks.0.mlp.fc1.bias"} <= set(names)
    assert not layer.residual.requires_grad


def test_random_choices_follow_the_seed_and_no_other_random_number():
    starts = []
    for seed in (1, 1, 2):
        vit = tiny_vit()  # other weights each time, which the order leaves out of A and B
        adapt(vit, SomaConfig(rank=2, components="random", order="decompose_first", seed=seed), [1])
        starts.append(vit.blocks[1].mlp.fc1.a)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_a_weight_of_lower_rank_has_components_that_never_train():
    linear = nn.Linear(6, 6)
    linear.weight.data.zero_()
    layer = SomaLinear(linear, 2)
    layer(torch.randn(4, 6)).square().sum().backward()
    assert not any(tensor.any() for tensor in (layer.a, layer.b, layer.a.grad, layer.b.grad))


def test_adapting_leaves_the_number_of_threads_and_says_so_where_it_fails(monkeypatch):
    threads = torch.get_num_threads()
    adapt_soma(tiny_vit(), [1], rank=2)
    assert torch.get_num_threads() == threads

    def fail(*args):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(soma, "stacked_factors", fail)
    with pytest.raises(torch.linalg.LinAlgError):
        adapt_soma(tiny_vit(), [1], rank=2)
    assert torch.get_num_threads() == threads


def test_without_initialization_the_layers_are_empty_and_take_the_weights_of_an_adapted_model():
    full, empty = tiny_vit(), tiny_vit()
    names = adapt(full, SomaConfig(rank=2), [1])
    assert adapt(empty, SomaConfig(rank=2), [1], initialize=False) == names
    assert not empty.blocks[1].attn.qkv.a.any()
    empty.load_state_dict(full.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(full(x), empty(x))


def test_targets_match_whole_names_within_a_block():
    vit = tiny_vit()
    assert select_linears(vit, [2, 1], [r"attn\.proj"]) == ["blocks.1.attn.proj", "blocks.2.attn.proj"]
    assert len(select_linears(vit, [0])) == 4


def test_injection_says_what_it_adapted(caplog):
    with caplog.at_level(logging.INFO, logger="soma_det"):
        adapt_soma(tiny_vit(), [1, 2], rank=2)
    assert "rank 2, minor components of 8 layers" in caplog.text


@pytest.mark.parametrize("order", ["load_first", "decompose_first"])
def test_a_model_without_storage_can_be_adapted_and_run(order):
    with torch.device("meta"):
        vit = tiny_vit()
        names = adapt(vit, SomaConfig(rank=2, order=order), [1])
        assert vit(torch.empty(1, 3, 64, 64)).is_meta
    assert all(vit.get_parameter(name).is_meta for name in names)
