"""SoMA: train only the smallest singular components of each pretrained weight.

Source: SoMA: Singular Value Decomposed Minor Components Adaptation for Domain Generalizable Representation Learning,
CVPR 2025, arXiv 2412.04077, section 3. With the singular values falling,

    W = U S V^T,   B = U[:, -r:] sqrt(S[-r:]),   A = sqrt(S[-r:]) V[:, -r:]^T,   W_res = W - B A,

B and A are trained and W_res is frozen: y = x (W_res + B A)^T + bias. At the start that is exactly the pretrained layer.
The pretrained weights must therefore be in the model BEFORE it is adapted.
"""

import logging
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

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

    The decomposition is that of the smaller Gram matrix in float64. Its eigenvectors Q are the singular vectors of one
    side, and Q Q^T W (or W Q Q^T) is the part of W in the chosen components, exactly as in a full SVD and faster.

    Args:
        components: "minor" (the method), "major" (what PiSSA, arXiv 2404.02948, trains) or "random".
        generator: source of the random choice.
    """
    _check_split(weight, rank, components)
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
    a, b = a.to(dtype), b.to(dtype)
    residual = (exact - b.double() @ a.double()).to(dtype)
    return residual, a, b


def _check_split(weight: Tensor, rank: int, components: str) -> None:
    if weight.ndim != 2:
        raise ValueError(f"Only a matrix can be split, not a weight of shape {tuple(weight.shape)}.")
    check_rank(rank, weight.shape)
    if components not in COMPONENTS:
        raise ValueError(f"Unknown components {components!r}: choose one of {COMPONENTS}.")


def _choose(available: int, rank: int, components: str, generator: torch.Generator | None) -> Tensor:
    if components == "minor":
        return torch.arange(rank)
    if components == "major":
        return torch.arange(available - rank, available)
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
        """residual + B A, (out, in); differentiable in A and B."""
        return compose(self.residual, self.a, self.b)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
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
    ):
        """Decompose ``linear``; with ``components`` None leave A and B at zero, for a checkpoint to fill them."""
        if linear.out_features % parts:
            raise ValueError(f"{linear.out_features} output features do not divide into {parts} stacked weights.")
        weights = linear.weight.chunk(parts)
        if components is None:
            split = [_undecomposed(weight, rank) for weight in weights]
        else:
            split = [split_components(weight, rank, components, generator) for weight in weights]
        residuals, a, b = zip(*split)
        super().__init__(linear, torch.cat(residuals), torch.stack(a), torch.stack(b))
        self.components = components

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, components={self.components}"


def _undecomposed(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    return weight.detach(), weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)


def compose(residual: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W_res + B A for stacked weights: (out, in), (parts, rank, in), (parts, out / parts, rank) -> (out, in)."""
    return torch.baddbmm(residual.view(a.shape[0], -1, a.shape[2]), b, a).view_as(residual)


class _ComposedLinear(torch.autograd.Function):
    """y = x (W_res + B A)^T + bias in one product each way, without ever forming the gradient of the whole weight.

    The weight is composed in its own precision, then cast once to that of x. The gradients of A and B come from x and
    from the gradient of y through products of inner size ``rank``.
    """

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, residual, a, b)
        ctx.has_bias = bias is not None
        with torch.autocast(x.device.type, enabled=False):
            bias = bias.to(x.dtype) if ctx.has_bias else None
            return F.linear(x, compose(residual, a, b).to(x.dtype), bias)

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        x, residual, a, b = ctx.saved_tensors
        parts, rank, d_in = a.shape
        grad_x = grad_a = grad_b = grad_bias = None
        flat_x, flat_grad = x.reshape(-1, d_in), grad_y.reshape(-1, residual.shape[0])
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = (flat_grad @ compose(residual, a, b).to(grad_y.dtype)).view_as(x)
            if ctx.needs_input_grad[2]:
                by_part = flat_grad.view(-1, parts, residual.shape[0] // parts).transpose(0, 1)  # (parts, N, out/parts)
                grad_a = ((by_part @ b.to(grad_y.dtype)).transpose(1, 2) @ flat_x).to(a.dtype)
                x_a = (flat_x @ a.to(x.dtype).view(-1, d_in).T).view(-1, parts, rank).transpose(0, 1)  # (parts, N, r)
                grad_b = (by_part.transpose(1, 2) @ x_a).to(b.dtype)
            if ctx.has_bias and ctx.needs_input_grad[4]:
                grad_bias = flat_grad.sum(0)
        return grad_x, None, grad_a, grad_b, grad_bias


def inject_soma(
    vit: nn.Module,
    rank: int,
    blocks: Sequence[int],
    targets: Sequence[str] = ATTENTION_AND_MLP,
    components: str = "minor",
    seed: int = 0,
    decompose: bool = True,
) -> list[str]:
    """Replace linear layers of a pretrained ViT by :class:`SomaLinear`, in place; its outputs stay the same.

    Args:
        vit: a timm ViT that already holds its pretrained weights.
        rank, components: see :func:`split_components`.
        blocks, targets: see :func:`~soma_det.adapters.selection.select_linears`.
        seed: of the choice of components where they are random.
        decompose: False spares the decomposition where a checkpoint of an adapted model will be loaded next.

    Returns:
        The names of the adapted layers.

    Raises:
        ValueError: a wrong rank, block, target or kind of components; the model is left as it was.
    """
    names = select_linears(vit, blocks, targets)
    for name in names:
        linear = vit.get_submodule(name)
        if isinstance(linear, SomaLinear):
            raise ValueError(f"{name} is adapted already; merge_soma first.")
        _check_split(linear.weight.chunk(stacked_parts(name))[0], rank, components)
    generator = torch.Generator().manual_seed(seed)
    for name in tqdm(names, desc="Decomposing weights", unit="layer", delay=3, leave=False):
        linear = vit.get_submodule(name)
        layer = SomaLinear(linear, rank, stacked_parts(name), components if decompose else None, generator)
        replace_module(vit, name, layer)
    what = f"{len(names)} layers in {len(set(blocks))} blocks"
    logger.info("SoMA: rank %d, %s components of %s", rank, components, what)
    return names


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
) -> list[str]:
    layers = inject_soma(vit, rank, blocks, targets, components, seed, decompose)
    return parameter_names(vit, layers, ("a", "b"), train_bias)


register_adapter(
    Adapter(
        "soma",
        "the smallest singular components of each weight (SoMA)",
        _inject,
        options=("blocks", "rank", "targets", "train_bias", "components", "seed", "decompose"),
        merge=merge_soma,
    )
)
