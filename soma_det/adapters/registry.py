"""All methods of adapting a ViT, by name, and the one way in and out for each of them."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Callable, Sequence

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """One method.

    Attributes:
        name: what MODEL.ADAPTER.NAME says.
        summary: one line, for help texts.
        inject: ``inject(vit, blocks, **options)`` changes the ViT in place and returns the names of the parameters to
            train. The ViT holds its pretrained weights by then.
        options: the keyword arguments of ``inject``, and ``blocks`` where the choice of blocks matters. Of these, ``seed``
            (of random choices) and ``decompose`` (False where a checkpoint brings all weights) are no config keys.
        merge: ``merge(vit)`` turns the adapted ViT back into a plain one, in place, and returns the names of the merged
            layers; None where that is impossible.
        why_not_mergeable: the reason, in one sentence.
        block_step: by default every ``block_step``-th block is adapted, counted down from the last.
        auxiliary_loss: whether training adds a loss of its own, see :func:`soma_det.adapters.moa.pop_auxiliary_losses`.
    """

    name: str
    summary: str
    inject: Callable[..., list[str]]
    options: tuple[str, ...] = ()
    merge: Callable[[nn.Module], list[str]] | None = None
    why_not_mergeable: str = ""
    block_step: int = 1
    auxiliary_loss: bool = False

    def usual_blocks(self, first: int, last: int) -> list[int]:
        """The blocks that the method adapts by default, of those from ``first`` to ``last``, both included."""
        return list(range(last, first - 1, -self.block_step))[::-1]


ADAPTERS: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> None:
    """Make a method known under its name."""
    assert adapter.name not in ADAPTERS, f"{adapter.name} is registered twice"
    assert (adapter.merge is None) == bool(
        adapter.why_not_mergeable
    ), f"{adapter.name}: merges, or says why it does not"
    ADAPTERS[adapter.name] = adapter


def get_adapter(name: str) -> Adapter:
    """The method of this name.

    Raises:
        ValueError: there is none; the message lists all of them.
    """
    if name not in ADAPTERS:
        raise ValueError(f"Unknown adapter {name!r}: set MODEL.ADAPTER.NAME to one of\n{describe_adapters()}")
    return ADAPTERS[name]


def describe_adapters() -> str:
    """One line for each method: its name and what it trains."""
    return "\n".join(
        f"    {adapter.name:<12}{adapter.summary}" for adapter in sorted(ADAPTERS.values(), key=attrgetter("name"))
    )


def inject_adapter(vit: nn.Module, name: str, blocks: Sequence[int], **options) -> list[str]:
    """Adapt a pretrained ViT, in place: afterwards only what the method trains requires gradients.

    Args:
        vit: a timm ViT that holds its pretrained weights.
        name: of the method.
        blocks: indices of the blocks to adapt, counted from 0.
        options: of the method; see the file that registers it.

    Returns:
        The names of the parameters that train.

    Raises:
        ValueError: an unknown name, block or option, or a ViT that is adapted already.
    """
    adapter = get_adapter(name)
    unknown = sorted(set(options) - set(adapter.options))
    if unknown:
        raise ValueError(f"The adapter {name!r} has no option {unknown}; it has {list(adapter.options)}.")
    if getattr(vit, "adapter_name", None):
        raise ValueError(f"The ViT is adapted already, by {vit.adapter_name!r}: merge_adapter first, or build it anew.")
    device = next(vit.parameters()).device
    if device.type == "cuda":
        vit.cpu()  # where decompositions and new parameters are made
    try:
        names = adapter.inject(vit, blocks, **options)
    finally:
        vit.to(device)
    vit.train(vit.training)  # new modules join the ViT's mode
    vit.requires_grad_(False)
    for parameter in names:
        vit.get_parameter(parameter).requires_grad_(True)
    vit.adapter_name = name
    return names


def is_mergeable(module: nn.Module) -> bool:
    """Whether this module is an adapted ViT that can be merged."""
    name = getattr(module, "adapter_name", None)
    return bool(name) and get_adapter(name).merge is not None


def merge_adapter(model: nn.Module) -> list[str]:
    """Turn an adapted ViT, or the one inside a detector, back into a plain timm ViT that computes the same, in place.

    Returns:
        The names of the merged layers; none for methods that leave the ViT plain.

    Raises:
        ValueError: nothing is adapted, or the method cannot be merged; the message says why.
    """
    vit = next((module for module in model.modules() if getattr(module, "adapter_name", None)), None)
    if vit is None:
        raise ValueError("Nothing to merge: the model has no ViT that inject_adapter has adapted.")
    adapter = get_adapter(vit.adapter_name)
    if adapter.merge is None:
        raise ValueError(
            f"{adapter.name!r} cannot be merged: {adapter.why_not_mergeable} Use the adapted model as it is, or train "
            f"with one of {[name for name, other in ADAPTERS.items() if other.merge]}."
        )
    names = adapter.merge(vit)
    vit.adapter_name = None
    return names
