"""SoMA: train only the smallest singular components of each pretrained weight.

Source: SoMA: Singular Value Decomposed Minor Components Adaptation for Domain Generalizable Representation Learning,
CVPR 2025, arXiv 2412.04077, section 3: y = x (W_res + B A)^T + bias, with B and A from the smallest singular components
of W (see :mod:`soma_det.adapters.decomposition`) trained and W_res frozen. At the start that is exactly the pretrained
layer. The pretrained weights must therefore be in the model BEFORE it is adapted.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from soma_det.adapters.base import Blocks, LowRankConfig, register, require
from soma_det.adapters.composed import ComposedLinear
from soma_det.adapters.decomposition import (
    COMPONENTS,
    Components,
    replace_by_decomposition,
    residual_of,
    stacked_factors,
)
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    check_ranks,
    get_linear,
    parameter_names,
    replace_module,
    select_linears,
    stacked_parts,
)

Order = Literal["load_first", "decompose_first"]

logger = logging.getLogger(__name__)


@register
@dataclass(frozen=True)
class SomaConfig(LowRankConfig):
    """SoMA; the rank is the number of components of each part of a stacked weight.

    Attributes:
        components: "minor" (the method), or for ablation "major" or "random".
        seed: of what is random ("random" components, "decompose_first").
        order: "load_first" (the method), or for ablation "decompose_first": random weights are decomposed and the
            pretrained ones loaded over the residual, as in the authors' public code (ysj9909/SoMA).
    """

    name = "soma"
    summary = "the smallest singular components of each weight (SoMA)"

    components: Components = "minor"
    seed: int = 0
    order: Order = "load_first"

    def __post_init__(self):
        super().__post_init__()
        require(
            self.components in COMPONENTS,
            f"MODEL.ADAPTER.SOMA.COMPONENTS is {self.components!r}: choose one of {COMPONENTS}.",
        )
        orders = get_args(Order)
        require(self.order in orders, f"MODEL.ADAPTER.SOMA.ORDER is {self.order!r}: choose one of {orders}.")

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        names = select_linears(model, blocks, targets or ATTENTION_AND_MLP)
        check_ranks(model, names, self.rank)
        if initialize:
            _decompose(model, names, self)
        else:
            for name in names:
                empty = SomaLinear.empty(get_linear(model, name), self.rank, stacked_parts(model, name))
                replace_module(model, name, empty)
        if initialize and self.order == "decompose_first":
            _load_after_decomposition(model, names, self)
        return parameter_names(model, names, ("a", "b"), self.train_bias)


class SomaLinear(ComposedLinear):
    """A linear layer of which only a few singular components, and its bias, are trained.

    A weight that stacks several (fused qkv) is decomposed part by part.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        parts: int = 1,
        components: Components = "minor",
        generator: torch.Generator | None = None,
    ):
        if linear.out_features % parts:
            raise ValueError(f"{linear.out_features} output features do not divide into {parts} stacked weights.")
        a, b = stacked_factors(linear.weight.chunk(parts), rank, components, generator)
        super().__init__(linear, residual_of(linear.weight, a, b), a, b)
        self.config = SomaConfig(rank=rank, components=components)

    @classmethod
    def empty(cls, linear: nn.Linear, rank: int, parts: int = 1) -> "SomaLinear":
        """The layer with A and B of zero, for a checkpoint to fill them."""
        layer = cls.__new__(cls)
        a = linear.weight.new_zeros(parts, rank, linear.in_features)
        b = linear.weight.new_zeros(parts, linear.out_features // parts, rank)
        ComposedLinear.__init__(layer, linear, linear.weight.detach(), a, b)
        layer.config = SomaConfig(rank=rank)
        return layer


def _decompose(model: nn.Module, names: Sequence[str], config: SomaConfig) -> None:
    """Replace the layers by SoMA layers."""
    generator = torch.Generator().manual_seed(config.seed)

    def adapt(name: str) -> SomaLinear:
        linear, parts = get_linear(model, name), stacked_parts(model, name)
        return SomaLinear(linear, config.rank, parts, config.components, generator)

    # The order of random choices matters.
    replace_by_decomposition(model, names, adapt, in_order=config.components == "random")
    logger.info("SoMA: rank %d, %s components of %d layers", config.rank, config.components, len(names))


def _load_after_decomposition(model: nn.Module, layers: Sequence[str], config: SomaConfig) -> None:
    """Make SoMA layers what they are when random weights are decomposed and the pretrained ones are loaded later.

    Loading fills W_res and leaves A and B. So the model starts at W + B A in the place of W, with components of a
    random matrix that mean nothing to it.
    """
    generator = torch.Generator().manual_seed(config.seed)
    for name in layers:
        layer = model.get_submodule(name)
        assert isinstance(layer, SomaLinear)
        untrained = nn.Linear(layer.in_features, layer.out_features, bias=False)
        # nn.Linear's own initialization, which the authors' ViT leaves in place: std 1 / sqrt(3 d_in).
        nn.init.kaiming_uniform_(untrained.weight, a=math.sqrt(5), generator=generator)
        late = SomaLinear(untrained, layer.rank, layer.parts, config.components, generator)
        late.residual.data, late.bias, late.weight_dtype = layer.weight.detach(), layer.bias, layer.weight_dtype
        replace_module(model, name, late)
