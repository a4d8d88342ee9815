"""Orthogonal subspace fine-tuning: the largest singular directions of each weight stay, all others train.

Source: Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning, arXiv 2504.07097. A weight is
U S V^T; of its singular components the largest are frozen and the rest train,

    W = U_high S_high V_high^T + U_low S_low V_low^T,

and the gradients of U_low and V_low lose what lies along U_high and V_high. The nearest relative of SoMA: it keeps the
same directions and trains as many others as it can. One share is kept in every layer, as in Hugging Face's peft, where
the paper lets the share of a layer follow from how much it changes its input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soma_det.adapters.base import AdapterConfig, Blocks, register, require
from soma_det.adapters.composed import ComposedLinear
from soma_det.adapters.decomposition import replace_by_decomposition, residual_of
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    get_linear,
    parameter_names,
    select_linears,
    stacked_parts,
)


@register
@dataclass(frozen=True)
class OsfConfig(AdapterConfig):
    """Orthogonal subspace fine-tuning.

    Attributes:
        kept: share of the singular components of each weight that is frozen, the largest ones; between 0 and 1.
        train_bias: train the biases of the adapted layers.
    """

    name = "osf"
    summary = "all but the largest singular components of each weight (OSF)"
    takes_targets = True

    kept: float = 0.5
    train_bias: bool = True

    def __post_init__(self):
        require(0 < self.kept < 1, f"MODEL.ADAPTER.OSF.KEPT is {self.kept}: give a share between 0 and 1.")

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        names = select_linears(model, blocks, targets or ATTENTION_AND_MLP)

        def make(name: str) -> OsfLinear:
            return OsfLinear(get_linear(model, name), self, stacked_parts(model, name), initialize)

        replace_by_decomposition(model, names, make)
        return parameter_names(model, names, ("a", "s", "b"), self.train_bias)


class OsfLinear(ComposedLinear):
    """A linear layer with b = U_low (parts, out / parts, rank), s = S_low (parts, rank, 1) and a = V_low^T."""

    def __init__(self, linear: nn.Linear, config: OsfConfig, parts: int = 1, initialize: bool = True):
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        weights = torch.stack(linear.weight.detach().chunk(parts)).double()
        rows, columns = weights.shape[1:]
        smaller = min(rows, columns)
        kept = min(max(1, round(config.kept * smaller)), smaller - 1)
        if initialize:
            u, s, v = torch.linalg.svd(weights, full_matrices=False)
        else:  # a checkpoint fills them
            shapes = (rows, smaller), (smaller,), (smaller, columns)
            u, s, v = (weights.new_zeros(parts, *shape) for shape in shapes)
        u, s, v = u.to(dtype), s.to(dtype)[..., None], v.to(dtype)
        a, b, low = v[:, kept:].clone(), u[..., kept:].clone(), s[:, kept:].clone()
        super().__init__(linear, residual_of(linear.weight, low * a, b), a, b)
        self.config = config
        self.s = nn.Parameter(low)
        self.register_buffer("kept_u", u[..., :kept].clone())
        self.register_buffer("kept_v", v[:, :kept].clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """As ComposedLinear's; the gradients of both factors lose what lies along the kept directions."""
        a = _WithoutKept.apply(self.a.mT, self.kept_v.mT).mT
        return (self.s * a).contiguous(), _WithoutKept.apply(self.b, self.kept_u)


class _WithoutKept(torch.autograd.Function):
    """x (parts, n, rank) as it is; its gradient loses its components along orthonormal columns (parts, n, kept)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return gradient - kept @ (kept.mT @ gradient), None
