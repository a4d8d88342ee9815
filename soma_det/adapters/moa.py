"""MoA, mixture of adapters: a router picks, token by token, one of several low-rank changes of a weight.

Source: Domain Generalization Using Large Pretrained Models with Mixture-of-Adapters, Lee et al. 2023, arXiv 2310.11031.
The experts e of a layer have the ranks r_e = 1, 2, 4, 8 and

    dW_e = sum over i = 1..64 of kron(A_i, L_i^e R_i^e),

with A_i (64, 64) of rank 1, shared by all experts and layers, L^e (64, d_in / 64, r_e) and R^e (64, r_e, d_out / 64).
A cosine router per token picks the expert:

    logits = norm(x W_p) norm(M) exp(min(tau, log 100)),   p = softmax(logits + noise),
    y = x W^T + bias + p_e* x dW_e* + b,                   e* = argmax p,

where the noise, N(0, 1) / number of experts, and a dropout of 0.5 on dW are there in training only. An auxiliary loss
keeps the experts in balance. The starting values are those of the factors below: dW starts small, not at zero.
The simpler form has LoRA experts, dW_e = A_e B_e with A ~ N(0, 1 / r^2) and B = 0, no dropout and no bias b. Starting
values and the bias of the router's projection are those of the public code (KU-CVLAB/MoA).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soma_det.adapters.base import AdapterConfig, AdapterLayer, Blocks, register, require
from soma_det.adapters.selection import check_rank, get_linear, replace_module, require_called, select_linears

QUERY_KEY_VALUE = (r"attn\.(qkv|q_proj|k_proj|v_proj)",)
FACTORS = 64  # terms of the Kronecker sum, and rows and columns of each A_i
ROUTER_WIDTH = 256
DROPOUT = 0.5
AUXILIARY_WEIGHT = 0.01


class SharedFactors(nn.Module):
    """The A_i of all experts of all layers: A_i = left[i] right[i]^T."""

    def __init__(self):
        super().__init__()
        self.left = nn.Parameter(torch.empty(FACTORS, FACTORS).uniform_(-0.01, 0.01))
        self.right = nn.Parameter(torch.empty(FACTORS, FACTORS).uniform_(-0.01, 0.01))


class KroneckerExpert(nn.Module):
    """dW = sum of kron(A_i, L_i R_i)."""

    def __init__(self, shared: SharedFactors, d_in: int, d_out: int, rank: int):
        super().__init__()
        self._shared = (shared,)  # in a tuple, so that its parameters belong to the ViT alone
        self.left = nn.Parameter(_glorot(d_in // FACTORS, rank))
        self.right = nn.Parameter(_glorot(rank, d_out // FACTORS))

    def forward(self) -> Tensor:
        """dW, (d_in, d_out)"""
        (shared,) = self._shared
        # kron(u v^T, L R) = (u kron L)(v^T kron R): the sum is a product of inner size 64 rank.
        left = torch.einsum("ia,ikr->akir", shared.left, self.left).flatten(2).flatten(0, 1)  # (d_in, 64 rank)
        right = torch.einsum("ib,irl->irbl", shared.right, self.right).flatten(2).flatten(0, 1)  # (64 rank, d_out)
        return left @ right


class LoraExpert(nn.Module):
    """dW = A B, at the start zero."""

    def __init__(self, d_in: int, d_out: int, rank: int):
        super().__init__()
        self.a = nn.Parameter(torch.randn(d_in, rank) / rank)
        self.b = nn.Parameter(torch.zeros(rank, d_out))

    def forward(self) -> Tensor:
        """dW, (d_in, d_out)"""
        return self.a @ self.b


class CosineRouter(nn.Module):
    """Scores of the experts for each token: the cosine between the projected token and one vector for each expert."""

    def __init__(self, dim: int, experts: int):
        super().__init__()
        self.project = nn.Linear(dim, ROUTER_WIDTH)
        self.experts = nn.Parameter(torch.empty(ROUTER_WIDTH, experts).normal_(std=0.01))
        self.temperature = nn.Parameter(torch.tensor(math.log(2)))

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, dim) -> logits (tokens, experts), in fp32 also under autocast"""
        with torch.autocast(x.device.type, enabled=False):
            tokens = F.normalize(self.project(x.to(self.experts.dtype)), dim=1)
            scale = self.temperature.clamp(max=math.log(100)).exp()
            return tokens @ F.normalize(self.experts, dim=0) * scale


@register
@dataclass(frozen=True)
class MoaConfig(AdapterConfig):
    """Mixture of adapters.

    Attributes:
        ranks: one expert for each, two or more.
        experts: "kronecker" (the paper's) or "lora".
        train_bias: give the layers with Kronecker experts the bias b.
    """

    name = "moa"
    summary = "a mixture of low-rank experts, routed token by token (MoA)"
    takes_targets = True
    why_not_mergeable = "its router picks another weight for each token, so there is no one weight to merge into."
    auxiliary_loss = True
    block_step = 2

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    experts: Literal["kronecker", "lora"] = "kronecker"
    train_bias: bool = True

    def __post_init__(self):
        object.__setattr__(self, "ranks", tuple(self.ranks))  # from a yaml file it comes as a list
        require(
            self.experts in ("kronecker", "lora"),
            f"MODEL.ADAPTER.MOA.EXPERTS is {self.experts!r}: choose 'kronecker' or 'lora'.",
        )
        require(
            len(self.ranks) >= 2,
            f"MODEL.ADAPTER.MOA.RANKS is {list(self.ranks)}: a mixture needs at least two experts.",
        )

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        layers = select_linears(model, blocks, targets or QUERY_KEY_VALUE)
        require_called(model, layers, "MoA")
        for name in layers:
            self._check(get_linear(model, name), name)
        shared = SharedFactors() if self.experts == "kronecker" else None
        for name in layers:
            replace_module(model, name, MoaLinear(get_linear(model, name), self, shared))
        names = [f"{layer}.{part}" for layer in layers for part in _trained(model.get_submodule(layer))]
        if shared is None:
            return names
        model.moa = shared
        return [*names, "moa.left", "moa.right"]

    def _check(self, linear: nn.Linear, name: str) -> None:
        shape = linear.weight.shape
        require(
            self.experts == "lora" or not (shape[0] % FACTORS or shape[1] % FACTORS),
            f"{name} is {shape[0]} x {shape[1]}, which does not divide by {FACTORS} as MoA's Kronecker products need: "
            "set MODEL.ADAPTER.MOA.EXPERTS to 'lora'.",
        )
        for rank in self.ranks:
            check_rank(rank, shape)


def _trained(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters() if not name.startswith("base.")]


class MoaLinear(AdapterLayer):
    """A frozen linear layer with a mixture of experts beside it.

    Attributes:
        auxiliary_loss: of the last forward pass in training, for :func:`pop_auxiliary_losses`.
    """

    def __init__(self, linear: nn.Linear, config: MoaConfig, shared: SharedFactors | None):
        super().__init__()
        size = linear.in_features, linear.out_features
        self.config, self.base = config, linear
        self.experts = nn.ModuleList(
            LoraExpert(*size, rank) if shared is None else KroneckerExpert(shared, *size, rank) for rank in config.ranks
        )
        self.router = CosineRouter(linear.in_features, len(config.ranks))
        bias = shared is not None and config.train_bias
        self.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features)) if bias else None
        self.dropout = 0.0 if shared is None else DROPOUT
        self.auxiliary_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)"""
        tokens = x.reshape(-1, x.shape[-1])
        probability, chosen = self._route(tokens)
        y = self.base(tokens)
        for index, expert in enumerate(self.experts):
            # An expert without tokens still takes part, with no rows, so that its gradient is zero and not missing.
            rows = (chosen == index).nonzero().squeeze(1)
            change = tokens[rows] @ F.dropout(expert(), self.dropout, self.training)
            y = y.index_add(0, rows, (probability[rows, None] * change).to(y.dtype))
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], -1)

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(tokens)
        if not self.training:
            return logits.softmax(1).max(1)
        noisy = logits + torch.randn_like(logits) / len(self.experts)
        probability, chosen = noisy.softmax(1).max(1)
        loss = AUXILIARY_WEIGHT * balance_loss(logits.softmax(1), probability)
        if torch._C._current_graph_task_id() == -1:  # activation checkpointing calls again, in the backward pass
            self.auxiliary_loss = loss
        return probability, chosen


def balance_loss(clean: Tensor, top: Tensor) -> Tensor:
    """How unevenly the experts are used: (L_importance + L_load) / 2.

    Each is the squared coefficient of variation over the experts: of the probabilities summed over the tokens, and of
    the chances, summed likewise, that noise would lift an expert over the chosen one.

    Args:
        clean: (tokens, experts), probabilities without noise.
        top: (tokens,), the probability of the chosen expert, with noise.
    """
    importance = clean.sum(0)
    load = torch.special.ndtr((clean - top[:, None]) * clean.shape[1]).sum(0)
    return (_squared_variation(importance) + _squared_variation(load)) / 2


def _squared_variation(x: Tensor) -> Tensor:
    return x.var() / x.mean().square()


def _glorot(rows: int, columns: int) -> Tensor:
    """(64, rows, columns), each matrix Glorot uniform with gain sqrt 2."""
    bound = math.sqrt(2) * math.sqrt(6 / (rows + columns))
    return torch.empty(FACTORS, rows, columns).uniform_(-bound, bound)
