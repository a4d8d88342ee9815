"""What SoMA promises of the weights that it splits and of the layers that it replaces."""

import copy
import logging

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from soma_det.adapters.selection import select_linears
from soma_det.adapters.soma import SomaLinear, inject_soma, merge_soma, split_components, split_minor_components

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
    replaced = inject_soma(vit, rank=4, blocks=range(1, len(vit.blocks)))
    assert len(replaced) >= 4, name
    assert relative_error(vit(x), before) < 1e-5, name


@pytest.mark.parametrize("name", VITS)
def test_merging_keeps_outputs_names_and_classes_of_the_plain_model(name):
    plain = tiny_vit(name)
    x = torch.randn(2, 3, 64, 64)
    vit = copy.deepcopy(plain)
    replaced = inject_soma(vit, rank=4, blocks=range(1, len(vit.blocks)))
    with torch.no_grad():
        for layer in replaced:
            vit.get_submodule(layer).b.normal_(std=0.1)
    trained = vit(x)
    assert relative_error(trained, plain(x)) > 1e-3, name
    assert merge_soma(vit) == replaced
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
    inject_soma(vit, rank=2, blocks=[1])
    with pytest.raises(RuntimeError, match="Missing key.*residual"):
        vit.load_state_dict(dense.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*residual"):
        dense.load_state_dict(vit.state_dict())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(rank=1000, blocks=[1]), r"Rank 1000 is outside 1\.\.\d+"),
        (dict(rank=0, blocks=[1]), "Rank 0 is outside"),
        (dict(rank=2, blocks=[99]), r"Blocks \[99\] do not exist"),
        (dict(rank=2, blocks=[]), "No block is left to adapt"),
        (dict(rank=2, blocks=[1], targets=[]), "No layers to adapt"),
        (dict(rank=2, blocks=[1], targets=["attn.qkv", "mlp.fc7"]), "'mlp.fc7' matches no linear layer"),
        (dict(rank=2, blocks=[1], components="middle"), "Unknown components 'middle'"),
    ],
)
def test_wrong_arguments_raise_and_leave_the_model_as_it_was(arguments, message):
    vit = tiny_vit()
    before = {name: type(module) for name, module in vit.named_modules()}
    with pytest.raises(ValueError, match=message):
        inject_soma(vit, **arguments)
    assert {name: type(module) for name, module in vit.named_modules()} == before


def test_merging_a_model_without_soma_and_adapting_twice_are_errors():
    vit = tiny_vit()
    with pytest.raises(ValueError, match="Nothing to merge"):
        merge_soma(vit)
    inject_soma(vit, rank=2, blocks=[1])
    with pytest.raises(ValueError, match="adapted already"):
        inject_soma(vit, rank=2, blocks=[1])


def test_targets_match_whole_names_within_a_block():
    vit = tiny_vit()
    assert select_linears(vit, [2, 1], [r"attn\.proj"]) == ["blocks.1.attn.proj", "blocks.2.attn.proj"]
    assert len(select_linears(vit, [0])) == 4


def test_injection_says_what_it_adapted(caplog):
    with caplog.at_level(logging.INFO, logger="soma_det"):
        inject_soma(tiny_vit(), rank=2, blocks=[1, 2])
    assert "rank 2, minor components of 8 layers in 2 blocks" in caplog.text
