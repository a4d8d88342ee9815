"""The smallest, largest or random singular components of a weight as a product B A, and the residual.

Source: SoMA, arXiv 2412.04077, section 3. With the singular values falling,

    W = U S V^T,   B = U[:, -r:] sqrt(S[-r:]),   A = sqrt(S[-r:]) V[:, -r:]^T,   W_res = W - B A.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from soma_det.adapters.composed import compose
from soma_det.adapters.selection import check_rank, replace_module

Components = Literal["minor", "major", "random"]
COMPONENTS: tuple[Components, ...] = ("minor", "major", "random")
MAX_THREADS = 8  # each holds a weight and its decomposition in double precision


def split_minor_components(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a weight into its ``rank`` smallest singular components, as a product B A, and the residual.

    Args:
        weight: (out, in), of any floating dtype.
        rank: number of components, 1..min(out, in); anything else is a ValueError.

    Returns:
        residual (out, in), a (rank, in) and b (out, rank) with residual + b @ a = weight, in fp32 or, for a float64
        weight, in float64.
    """
    return split_components(weight, rank, "minor")


def split_components(
    weight: Tensor, rank: int, components: Components = "minor", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`split_minor_components`, for the smallest, the largest or a random choice of singular components.

    Args:
        components: "minor" (SoMA), "major" (what PiSSA, arXiv 2404.02948, trains) or "random".
        generator: source of the random choice.
    """
    a, b = stacked_factors([weight], rank, components, generator)
    return residual_of(weight, a, b), a[0], b[0]


def stacked_factors(
    weights: Sequence[Tensor], rank: int, components: Components, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A (parts, rank, in) and B (parts, out / parts, rank) of the weights, (out / parts, in) each."""
    for weight in weights:
        if weight.ndim != 2:
            raise ValueError(f"Only a matrix can be split, not a weight of shape {tuple(weight.shape)}.")
        check_rank(rank, weight.shape)
    if components not in COMPONENTS:
        raise ValueError(f"Unknown components {components!r}: choose one of {COMPONENTS}.")
    a, b = zip(*(_factors(weight, rank, components, generator) for weight in weights))
    return torch.stack(a), torch.stack(b)


def residual_of(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W - B A for stacked weights; shapes as in :func:`~soma_det.adapters.composed.compose`."""
    return compose(weight.detach().to(a.dtype), a, -b)


def replace_by_decomposition(
    model: nn.Module, names: Sequence[str], make: Callable[[str], nn.Module], in_order: bool = False
) -> None:
    """Put ``make(name)`` in the place of each of these layers, several at a time; shows progress if it takes seconds.

    Args:
        in_order: one after the other, for what draws random numbers.
    """
    layers = map(make, names) if in_order else _map_in_threads(make, names)
    for name, layer in tqdm(
        zip(names, layers), desc="Decomposing", total=len(names), unit="layer", delay=3, leave=False
    ):
        replace_module(model, name, layer)


def _map_in_threads(function: Callable, items: Sequence) -> Iterator:
    """As map, with one thread for each item at a time: a decomposition makes poor use of more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, MAX_THREADS)) as pool:
            yield from pool.map(function, items)
    finally:
        torch.set_num_threads(threads)


def _factors(
    weight: Tensor, rank: int, components: Components, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
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


def _choose(available: int, rank: int, components: Components, generator: torch.Generator | None) -> Tensor | slice:
    if components == "minor":
        return slice(rank)
    if components == "major":
        return slice(available - rank, available)
    return torch.randperm(available, generator=generator)[:rank]
