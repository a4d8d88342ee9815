"""SoMA: train only the smallest singular components of each pretrained weight.

Source: SoMA: Singular Value Decomposed Minor Components Adaptation for Domain Generalizable Representation Learning,
CVPR 2025, arXiv 2412.04077, section 3. With the singular values falling,

    W = U S V^T,   B = U[:, -r:] sqrt(S[-r:]),   A = sqrt(S[-r:]) V[:, -r:]^T,   W_res = W - B A,

B and A are trained and W_res is frozen: y = x (W_res + B A)^T + bias. At the start that is exactly the pretrained layer.
The pretrained weights must therefore be in the model BEFORE it is adapted.
"""

import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Callable, ContextManager, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from soma_det.adapters.cache import DecompositionCache, default_cache_dir
from soma_det.adapters.registry import Adapter, register_adapter
from soma_det.adapters.selection import (
    ATTENTION_AND_MLP,
    check_rank,
    parameter_names,
    replace_module,
    select_linears,
    stacked_parts,
)

COMPONENTS = ("minor", "major", "random")
ORDERS = ("load_first", "decompose_first")
MAX_THREADS = 8  # each holds a weight and its Gram matrix in double precision

logger = logging.getLogger(__name__)


def split_minor_components(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a weight into its ``rank`` smallest singular components, as a product B A, and the residual.

    Args:
        weight: (out, in), of any floating dtype.
        rank: number of components, 1..min(out, in).

    Returns:
        residual (out, in), a (rank, in) and b (out, rank) with residual + b @ a = weight, in fp32 or, for a float64
        weight, in float64.

    Raises:
        ValueError: the weight is not a matrix or the rank is outside its limits.
    """
    return split_components(weight, rank, "minor")


def split_components(
    weight: Tensor, rank: int, components: str = "minor", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`split_minor_components`, for the smallest, the largest or a random choice of singular components.

    Args:
        components: "minor" (the method), "major" (what PiSSA, arXiv 2404.02948, trains) or "random".
        generator: source of the random choice.
    """
    _check_split(weight, rank, components)
    a, b = _factors(weight, rank, components, generator)
    return _residual(weight, a[None], b[None]), a, b


def _factors(weight: Tensor, rank: int, components: str, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) of a weight (out, in).

    The decomposition is that of the smaller Gram matrix in float64. Its eigenvectors Q are the singular vectors of one
    side, and Q Q^T W (or W Q Q^T) is the part of W in the chosen components, exactly as in a full SVD and faster.
    """
    exact = weight.detach().double()
    wide = exact.shape[0] <= exact.shape[1]
    gram = exact @ exact.T if wide else exact.T @ exact
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # rising: the minor components come first
    q = eigenvectors[:, _choose(len(eigenvalues), rank, components, generator)]
    projected = q.T @ exact if wide else (exact @ q).T  # each row is a singular value times its other singular vector
    root = torch.linalg.vector_norm(projected, dim=1, keepdim=True).sqrt()  # sqrt(S)
    other = projected / root.where(root > 0, 1)  # a weight of lower rank has singular values of zero
    b, a = (q * root.T, other) if wide else (other.T, root * q.T)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return a.to(dtype), b.to(dtype)


def _residual(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W - B A for stacked weights; shapes as in :func:`compose`."""
    return compose(weight.detach().to(a.dtype), a, -b)


def _check_split(weight: Tensor, rank: int, components: str) -> None:
    if weight.ndim != 2:
        raise ValueError(f"Only a matrix can be split, not a weight of shape {tuple(weight.shape)}.")
    check_rank(rank, weight.shape)
    if components not in COMPONENTS:
        raise ValueError(f"Unknown components {components!r}: choose one of {COMPONENTS}.")


def _choose(available: int, rank: int, components: str, generator: torch.Generator | None) -> Tensor | slice:
    if components == "minor":
        return slice(rank)
    if components == "major":
        return slice(available - rank, available)
    return torch.randperm(available, generator=generator)[:rank]


class ComposedLinear(nn.Linear):
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

    @property
    def weight(self) -> Tensor:
        """residual + B A, (out, in), in their own precision; differentiable in A and B."""
        with _without_autocast(self.residual.device.type):
            return compose(self.residual, self.a, self.b)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return _ComposedLinear.apply(x, self.residual, self.a, self.b, self.bias)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _ComposedLinear.apply(x.to(dtype), self.residual, self.a, self.b, self.bias)

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.detach().clone(), requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, parts={self.parts}"


class SomaLinear(ComposedLinear):
    """A linear layer of which only a few singular components, and its bias, are trained.

    A weight that stacks several (fused qkv) is decomposed part by part.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        parts: int = 1,
        components: str | None = "minor",
        generator: torch.Generator | None = None,
        factors: tuple[Tensor, Tensor] | None = None,
    ):
        """Decompose ``linear``; with ``components`` None leave A and B at zero, for a checkpoint to fill them.

        ``factors`` (a, b), those of an earlier decomposition of this very weight, spare a new one.
        """
        if linear.out_features % parts:
            raise ValueError(f"{linear.out_features} output features do not divide into {parts} stacked weights.")
        if components is None:
            a = linear.weight.new_zeros(parts, rank, linear.in_features)
            b = linear.weight.new_zeros(parts, linear.out_features // parts, rank)
            super().__init__(linear, linear.weight.detach(), a, b)
        else:
            a, b = factors or _stacked_factors(linear.weight.chunk(parts), rank, components, generator)
            super().__init__(linear, _residual(linear.weight, a, b), a, b)
        self.components = components

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={self.components}"


def _stacked_factors(
    weights: Sequence[Tensor], rank: int, components: str, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A (parts, rank, in) and B (parts, out / parts, rank) of the weights, (out / parts, in) each."""
    for weight in weights:
        _check_split(weight, rank, components)
    a, b = zip(*(_factors(weight, rank, components, generator) for weight in weights))
    return torch.stack(a), torch.stack(b)


def compose(residual: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W_res + B A for stacked weights: (out, in), (parts, rank, in), (parts, out / parts, rank) -> (out, in)."""
    return torch.bmm(b, a).view_as(residual).add_(residual)  # baddbmm would copy the residual first


class _ComposedLinear(torch.autograd.Function):
    """y = x (W_res + B A)^T + bias in one product each way, without ever forming the gradient of the whole weight.

    The weight W is composed in its own precision, cast once to that of x, and kept for the backward pass. With h = gy B and
    t = x A^T, both of width ``rank``, the gradients are gx = gy W, gA = h^T x and gB = (t^T gy)^T. The products are written
    in the order and orientation that the CPU's matrix products are fastest in.
    """

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        weight = compose(residual, a, b).to(x.dtype)
        ctx.save_for_backward(x, weight, a, b)
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        with _without_autocast(grad_y.device.type):
            return _gradients(grad_y, *ctx.saved_tensors, ctx.needs_input_grad)


def _without_autocast(device: str) -> ContextManager:
    usable = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if usable else nullcontext()


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


def inject_soma(
    vit: nn.Module,
    rank: int,
    blocks: Sequence[int],
    targets: Sequence[str] = ATTENTION_AND_MLP,
    components: str = "minor",
    seed: int = 0,
    decompose: bool = True,
    cache: str | os.PathLike | None = None,
) -> list[str]:
    """Replace linear layers of a pretrained ViT by :class:`SomaLinear`, in place; its outputs stay the same.

    Args:
        vit: a timm ViT on the CPU that already holds its pretrained weights; inject_adapter takes one on a GPU too.
        rank, components: see :func:`split_components`.
        blocks, targets: see :func:`~soma_det.adapters.selection.select_linears`.
        seed: of the choice of components where they are random.
        decompose: False spares the decomposition where a checkpoint of an adapted model will be loaded next.
        cache: a folder of earlier decompositions, to use the one of these weights or to add it; None for none.

    Returns:
        The names of the adapted layers.

    Raises:
        ValueError: a wrong rank, block, target or kind of components; the model is left as it was.
    """
    names = select_linears(vit, blocks, targets)
    _check_layers(vit, names, rank, components)
    weights = {name: vit.get_submodule(name).weight for name in names}
    settings = {"rank": rank, "components": components, "seed": seed if components == "random" else None}
    stored = DecompositionCache(cache, weights, **settings) if cache and decompose else None
    factors = (stored.load() if stored else None) or {}
    generator = torch.Generator().manual_seed(seed)

    def adapt(name: str) -> SomaLinear:
        kind = components if decompose else None
        return SomaLinear(vit.get_submodule(name), rank, stacked_parts(name), kind, generator, factors.get(name))

    # The order of random choices matters.
    layers = map(adapt, names) if components == "random" else _map_in_threads(adapt, names)
    for name, layer in tqdm(
        zip(names, layers), desc="Decomposing", total=len(names), unit="layer", delay=3, leave=False
    ):
        replace_module(vit, name, layer)
    if stored and not factors:
        stored.save({name: (vit.get_submodule(name).a, vit.get_submodule(name).b) for name in names})
    what = f"{len(names)} layers in {len(set(blocks))} blocks"
    logger.info("SoMA: rank %d, %s components of %s", rank, components, what)
    return names


def _check_layers(vit: nn.Module, names: Sequence[str], rank: int, components: str) -> None:
    for name in names:
        linear = vit.get_submodule(name)
        if isinstance(linear, SomaLinear):
            raise ValueError(f"{name} is adapted already; merge_soma first.")
        _check_split(linear.weight.chunk(stacked_parts(name))[0], rank, components)


def _map_in_threads(function: Callable, items: Sequence) -> Iterator:
    """As map, with one thread for each item at a time: a decomposition makes poor use of more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, MAX_THREADS)) as pool:
            yield from pool.map(function, items)
    finally:
        torch.set_num_threads(threads)


def load_after_decomposition(vit: nn.Module, layers: Sequence[str], seed: int = 0) -> None:
    """Make SoMA layers, in place, what they are when random weights are decomposed and the pretrained ones loaded later.

    For ablation: this order is that of the authors' public code (ysj9909/SoMA), where loading fills W_res and leaves A
    and B. So the ViT starts at W + B A in the place of W, with components of a random matrix that mean nothing to it.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in layers:
        layer = vit.get_submodule(name)
        untrained = nn.Linear(layer.in_features, layer.out_features, bias=False)
        # nn.Linear's own initialization, which the authors' ViT leaves in place: std 1 / sqrt(3 d_in).
        nn.init.kaiming_uniform_(untrained.weight, a=math.sqrt(5), generator=generator)
        late = SomaLinear(untrained, layer.rank, layer.parts, layer.components, generator)
        late.residual.data, late.bias = layer.weight.detach(), layer.bias
        replace_module(vit, name, late)


def merge_soma(model: nn.Module) -> list[str]:
    """Turn every :class:`SomaLinear` back into a plain linear layer, in place; outputs stay the same to rounding.

    Returns:
        The names of the merged layers.

    Raises:
        ValueError: the model has no SoMA layers.
    """
    return merge_composed(model, SomaLinear)


def merge_composed(model: nn.Module, kind: type[ComposedLinear]) -> list[str]:
    """As :func:`merge_soma`, for layers of this kind."""
    names = [name for name, module in model.named_modules() if isinstance(module, kind)]
    if not names:
        raise ValueError(f"Nothing to merge: the model has no {kind.__name__} layers.")
    for name in names:
        replace_module(model, name, model.get_submodule(name).merged())
    return names


def _inject(
    vit: nn.Module,
    blocks: Sequence[int],
    rank: int = 16,
    targets: Sequence[str] = ATTENTION_AND_MLP,
    train_bias: bool = True,
    components: str = "minor",
    seed: int = 0,
    decompose: bool = True,
    cache: bool = False,
    order: str = "load_first",
) -> list[str]:
    if order not in ORDERS:
        raise ValueError(f"MODEL.ADAPTER.SOMA.ORDER is {order!r}: choose one of {ORDERS}.")
    folder = default_cache_dir() if cache and not next(vit.parameters()).is_meta else None
    layers = inject_soma(vit, rank, blocks, targets, components, seed, decompose, folder)
    if order == "decompose_first" and decompose:
        load_after_decomposition(vit, layers, seed)
    return parameter_names(vit, layers, ("a", "b"), train_bias)


register_adapter(
    Adapter(
        "soma",
        "the smallest singular components of each weight (SoMA)",
        _inject,
        options=("blocks", "rank", "targets", "train_bias", "components", "seed", "decompose", "cache", "order"),
        merge=merge_soma,
    )
)
