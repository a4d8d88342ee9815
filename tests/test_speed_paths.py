"""The products that SoMA's layers compose by hand give the gradients of the plain form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soma_det.adapters.soma import SomaLinear


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_equal_those_of_the_two_branch_form_to_rounding_in_double_precision(parts):
    layer = SomaLinear(nn.Linear(12, 24).double(), 3, parts)
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.a, layer.b, layer.bias)
    ours = torch.autograd.grad(layer(x).square().sum(), inputs)
    branch = torch.cat([x @ a.T @ b.T for a, b in zip(layer.a, layer.b)], dim=-1)
    expected = torch.autograd.grad((F.linear(x, layer.residual, layer.bias) + branch).square().sum(), inputs)
    for gradient, reference in zip(ours, expected):
        assert (gradient - reference).norm() / reference.norm() < 1e-13


@pytest.mark.parametrize("frozen", ["x", "a", "b", "bias"])
def test_what_does_not_train_gets_no_gradient_and_changes_no_other(frozen):
    layer = SomaLinear(nn.Linear(8, 12).double(), 2)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    tensors = {"x": x, "a": layer.a, "b": layer.b, "bias": layer.bias}
    layer(x).square().sum().backward()
    expected = {name: tensor.grad.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.grad = None
        tensor.requires_grad_(name != frozen)
    layer(x).square().sum().backward()
    for name, tensor in tensors.items():
        if name == frozen:
            assert tensor.grad is None
        else:
            assert torch.equal(tensor.grad, expected[name]), name


def test_backward_under_autocast_keeps_the_precision_of_the_forward_pass():
    layer = SomaLinear(nn.Linear(8, 12), 2)
    x = torch.randn(5, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward(retain_graph=True)
    expected, layer.a.grad = layer.a.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
    assert torch.equal(layer.a.grad, expected)


def test_two_passes_before_one_backward_pass_add_up():
    layer = SomaLinear(nn.Linear(8, 12).double(), 2)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    (layer(x[0]).square().sum() + layer(x[1]).square().sum()).backward()
    together, layer.a.grad = layer.a.grad, None
    layer(x).square().sum().backward()
    assert torch.allclose(layer.a.grad, together, rtol=1e-12)
