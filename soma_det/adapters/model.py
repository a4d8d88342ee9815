"""Adapting a model, finding what was put in, and merging it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soma_det.adapters.base import AdapterConfig, AdapterLayer
from soma_det.adapters.moa import MoaLinear
from soma_det.adapters.peft_methods import PeftLayer, is_peft_layer
from soma_det.adapters.selection import find_blocks, replace_module


def adapt(
    model: nn.Module,
    config: AdapterConfig,
    blocks: Sequence[int] | None = None,
    targets: Sequence[str] = (),
    *,
    initialize: bool = True,
) -> list[str]:
    """Adapt a pretrained model, in place: afterwards only what the method trains requires gradients.

    Args:
        model: any module that holds its pretrained weights; methods that change linear layers take all kinds of
            models, those that wrap blocks timm's plain ViTs.
        config: the method and its settings, such as ``SomaConfig(rank=16)``.
        blocks: indices into :func:`~soma_det.adapters.selection.find_blocks`; None for all blocks, or for the
            whole of a model that has none.
        targets: regular expressions of linear layers by their whole name within a block; empty for attention and MLP
            ("moa": query, key and value).
        initialize: False leaves out decompositions, where weights of the adapted model will be loaded next.

    Returns:
        The names of the parameters that train.

    Raises:
        ValueError: the model is adapted already, or a block, target or setting does not fit it.
    """
    layers = find_adapter_layers(model)
    if layers:
        raise ValueError(f"The model is adapted already, at {next(iter(layers))}: merge it first, or build it again.")
    if targets and not config.takes_targets:
        raise ValueError(f"{config.name!r} does not adapt single linear layers: leave out the targets {list(targets)}.")
    if blocks is None and (found := find_blocks(model)):
        blocks = list(range(len(found)))
    device = next(model.parameters()).device
    if device.type == "cuda":
        model.cpu()  # where decompositions and new parameters are made
    try:
        names = config.inject(model, blocks, targets, initialize)
    finally:
        model.to(device)
    model.train(model.training)  # new modules join the model's mode
    model.requires_grad_(False)
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    return names


def find_adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """Name -> layer for everything that a method has put into the model; empty for a plain one.

    The layers of peft come as views that answer like the others.
    """
    layers: dict[str, AdapterLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            layers[name] = module
        elif is_peft_layer(module):
            layers[name] = PeftLayer(module)
    return layers


def is_mergeable(model: nn.Module) -> bool:
    """Whether the model has adapter layers, and all of them can be merged."""
    layers = find_adapter_layers(model).values()
    return bool(layers) and not any(layer.config.why_not_mergeable for layer in layers)


def merge(model: nn.Module) -> list[str]:
    """Put a plain module in the place of every adapter layer, in place; the model computes the same, to rounding.

    Returns:
        The names of the merged layers; none for methods that leave the model plain.

    Raises:
        ValueError: a layer cannot be merged; the message says why, and the model is left as it was.
    """
    layers = find_adapter_layers(model)
    for layer in layers.values():
        if layer.config.why_not_mergeable:
            layer.merged()  # raises
    for name, layer in layers.items():
        replace_module(model, name, layer.merged())
    model.__dict__.pop("peft_config", None)  # which peft's injection has left there
    return list(layers)


def pop_auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """The auxiliary losses of the last forward pass, summed over layers and forgotten by them; {} without any."""
    losses = []
    for module in model.modules():
        if isinstance(module, MoaLinear) and module.auxiliary_loss is not None:
            losses.append(module.auxiliary_loss)
            module.auxiliary_loss = None
    return {"loss_moa_balance": torch.stack(losses).sum()} if losses else {}
