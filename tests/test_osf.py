"""Orthogonal subspace fine-tuning: what is kept, and what its gradients may touch."""

import copy

import pytest
import torch
from adapter_cases import HAS_PEFT, plain_vit
from torch import nn

from soma_det.adapters import OsfConfig, adapt
from soma_det.adapters.osf import OsfLinear


def layer(parts=1, out=12, inputs=8, kept=0.5):
    return OsfLinear(nn.Linear(inputs, out).double(), OsfConfig(kept=kept), parts)


@pytest.mark.parametrize("out, inputs, parts", [(12, 8, 1), (8, 12, 1), (8, 8, 1), (24, 8, 3)])
def test_the_residual_is_the_largest_components_and_the_rest_trains(out, inputs, parts):
    linear = nn.Linear(inputs, out).double()
    osf = OsfLinear(linear, OsfConfig(kept=0.25), parts)
    torch.testing.assert_close(osf.weight, linear.weight)
    for weight, residual, s in zip(linear.weight.chunk(parts), osf.residual.chunk(parts), osf.s, strict=True):
        values = torch.linalg.svdvals(weight)
        torch.testing.assert_close(torch.linalg.svdvals(residual)[:2], values[:2])
        assert torch.linalg.svdvals(residual)[2:].max() < 1e-12
        torch.testing.assert_close(s[:, 0], values[2:])


def test_gradients_have_nothing_along_the_kept_directions_and_all_factors_get_one():
    osf = layer(parts=3)
    osf(torch.randn(5, 8).double()).square().sum().backward()
    assert (osf.kept_u.mT @ osf.b.grad).abs().max() < 1e-12 and (osf.a.grad @ osf.kept_v.mT).abs().max() < 1e-12
    assert all(p.grad.any() for p in (osf.a, osf.b, osf.s, osf.bias)) and osf.residual.grad is None


@pytest.mark.parametrize("kept", [0, 1, -0.5, 2])
def test_a_share_that_keeps_nothing_or_all_is_refused(kept):
    with pytest.raises(ValueError, match="give a share between 0 and 1"):
        OsfConfig(kept=kept)


@pytest.mark.skipif(not HAS_PEFT, reason="needs peft")
@pytest.mark.parametrize("target", ["attn.proj", "mlp.fc1", "mlp.fc2"])
def test_after_three_steps_the_outputs_are_those_of_pefts_osf(target):
    import peft

    torch.manual_seed(0)
    ours = plain_vit()
    theirs = copy.deepcopy(ours)
    adapt(ours, OsfConfig(train_bias=False), blocks=[5], targets=[target.replace(".", r"\.")])
    theirs.requires_grad_(False)
    peft.inject_adapter_in_model(peft.OSFConfig(target_modules=[f"blocks.5.{target}"], effective_rank=0.5), theirs)
    x, direction, outputs = torch.randn(2, 3, 64, 64), torch.randn(2, 64), []
    for vit in (ours, theirs):
        start = vit(x).detach()
        optimizer = torch.optim.SGD([p for p in vit.parameters() if p.requires_grad], lr=1)
        for _ in range(3):
            optimizer.zero_grad()
            (vit(x) * direction).sum().backward()
            optimizer.step()
        assert (vit(x) - start).abs().max() > 1
        outputs.append(vit(x))
    # peft decomposes in float32, whose rounding depends on the CPU; without the projection they differ by 0.4.
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-3)
