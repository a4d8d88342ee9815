"""A linear layer whose weight is composed of a frozen residual and a trained low-rank product."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from soma_det.adapters.base import AdapterLayer, LowRankForm


class ComposedLinear(AdapterLayer, nn.Linear):
    """A linear layer with the weight residual + B A, of which only A, B and the bias can be trained.

    ``weight`` is composed on the fly and stays readable for code that uses it directly; what is stored are ``residual``
    (out, in; frozen), ``a`` (parts, rank, in) and ``b`` (parts, out / parts, rank), one pair for each of the weights
    that the layer stacks. A dense state dict does not fit this layer, nor the reverse, on purpose: what A and B hold
    would be counted twice.
    """

    def __init__(self, linear: nn.Linear, residual: Tensor, a: Tensor, b: Tensor):
        nn.Module.__init__(self)  # nn.Linear's would register a parameter named weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.parts, self.rank = a.shape[:2]
        self.residual = nn.Parameter(residual, requires_grad=False)
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        self.bias = linear.bias
        self.weight_dtype = linear.weight.dtype  # A and B may be kept in a higher precision

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the weight residual + B A, of which gradients reach what is stored."""
        return self.a, self.b

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """residual + B A, (out, in), in their own precision; differentiable in A and B."""
        device = self.residual.device.type
        with torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext():
            return compose(self.residual, *self.factors())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        device = x.device.type
        if not _has_autocast(device):
            return _ComposedLinear.apply(x, self.residual, *self.factors(), self.bias)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _ComposedLinear.apply(x.to(dtype), self.residual, *self.factors(), self.bias)

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        # A and B may have been in a higher precision from the start; a later conversion changes them and the bias.
        lower = min(self.weight_dtype, self.residual.dtype, key=lambda dtype: dtype.itemsize)
        dtype = lower if self.bias is None else self.bias.dtype
        linear.weight = nn.Parameter(self.weight.detach().to(dtype, copy=True), requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def low_rank_form(self) -> LowRankForm:
        """Residual, A and B, detached."""
        a, b = self.factors()
        return LowRankForm(self.residual.detach(), a.detach(), b.detach())

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, parts={self.parts}"


def compose(residual: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W_res + B A for stacked weights: (out, in), (parts, rank, in), (parts, out / parts, rank) -> (out, in)."""
    return torch.bmm(b, a).view_as(residual).add_(residual)  # baddbmm would copy the residual first


class _ComposedLinear(torch.autograd.Function):
    """y = x (W_res + B A)^T + bias in one product each way, without ever forming the gradient of the whole weight.

    The weight W is composed in its own precision, cast once to that of x, and kept for the backward pass. With h = gy B
    and t = x A^T, both of width ``rank``, the gradients are gx = gy W, gA = h^T x and gB = (t^T gy)^T. The products are
    written in the order and orientation that the CPU's matrix products are fastest in.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        weight = compose(residual, a, b).to(x.dtype)
        ctx.save_for_backward(x, weight, a, b)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable  # the weight is saved as a constant: a second derivative would be wrong
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        device = grad_y.device.type
        with torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext():
            x, weight, a, b = ctx.saved_tensors
            return _gradients(grad_y, x, weight, a, b, ctx.needs_input_grad)


def _has_autocast(device: str) -> bool:
    """Whether autocast is on; it does not exist on the device "meta"."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _gradients(grad_y: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, needed: Sequence[bool]) -> tuple:
    """Of x, residual, a, b and bias, None for those that are not needed and for the frozen residual."""
    parts, rank, d_in = a.shape
    rows_x, rows_y = x.reshape(-1, d_in), grad_y.reshape(-1, weight.shape[0])
    by_part = rows_y.view(-1, parts, b.shape[1]).transpose(0, 1)  # (parts, N, out / parts)
    grad_x = grad_a = grad_b = grad_bias = None
    if needed[0]:
        grad_x = (rows_y @ weight).view_as(x)
    if needed[2]:
        h = torch.bmm(by_part, b.to(x.dtype))  # (parts, N, rank)
        grad_a = torch.bmm(h.transpose(1, 2), rows_x.expand(parts, -1, -1)).to(a.dtype)
    if needed[3]:
        t = rows_x @ a.to(x.dtype).view(-1, d_in).T  # (N, parts * rank)
        by_rank = t.view(-1, parts, rank).permute(1, 2, 0)  # (parts, rank, N)
        grad_b = torch.bmm(by_rank, by_part).transpose(1, 2).to(b.dtype)
    if needed[4]:
        grad_bias = rows_y.sum(0)
    return grad_x, None, grad_a, grad_b, grad_bias
