"""What makes a model faster while it is evaluated, and is undone afterwards to the bit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from soma_det.adapters import find_adapter_layers, is_mergeable
from soma_det.adapters.selection import find_blocks
from soma_det.engine.hooks import unwrap_ddp
from soma_det.modeling.backbone.timm_vit import find_vits


@contextmanager
def prepared_for_inference(
    model: nn.Module, dtype: torch.dtype | None = None, compile_blocks: bool = False
) -> Iterator[nn.Module]:
    """The detector, merged and on request in lower precision and compiled, for the length of a ``with`` block.

    Args:
        model: a detector with a backbone, in training or not; may be wrapped for distributed training.
        dtype: of the backbone, torch.bfloat16 or torch.float16; None leaves the precision alone. The heads stay in
            fp32: scores and boxes need the precision, and are little of the work.
        compile_blocks: compile the ViT's blocks, at the first image and at each new image size.

    Raises:
        ValueError: there is no ViT whose blocks could be compiled.
    """
    with ExitStack() as stack:
        stack.enter_context(merged_for_inference(model))
        if compile_blocks:
            stack.enter_context(_compiled_blocks(model))
        if dtype is not None:
            stack.enter_context(_backbone_in(unwrap_ddp(model).get_submodule("backbone"), dtype))
        yield model


@contextmanager
def merged_for_inference(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its adapter layers merged into plain ones, for the length of a ``with`` block.

    The adapter layers are put aside and put back at the end, also after an exception: the same objects, with the same
    values, gradients and flags; every module is in training or evaluation mode as before. The plain layers need memory
    for their weights. A model whose adapter cannot be merged, or that has none, runs as it is.
    """
    modes = {module: module.training for module in model.modules()}
    layers = find_adapter_layers(model) if is_mergeable(model) else {}
    adapted = {name: model.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer.merged())
        yield model
    finally:
        for name, module in adapted.items():
            model.set_submodule(name, module)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _backbone_in(backbone: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The backbone under autocast; it hands on its features in fp32, in which boxes are pooled."""
    autocast = torch.autocast(next(backbone.parameters()).device.type, dtype=dtype)

    def enter(*args: object) -> None:
        autocast.__enter__()

    def leave(*args: object) -> None:
        autocast.__exit__(None, None, None)

    with backbone.register_forward_pre_hook(enter), backbone.register_forward_hook(leave, always_call=True):
        yield


@contextmanager
def _compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Blocks are compiled one by one: they are alike, so that the code of one serves all."""
    vits = [vit.model for vit in find_vits(model).values()]
    blocks = [vit.get_submodule(name) for vit in vits for name in find_blocks(vit)]
    if not blocks:
        raise ValueError("TEST.COMPILE compiles the blocks of a ViT, and this model has none: set it to False.")
    try:
        for block in blocks:
            block.compile()
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # as nn.Module starts out; there is no public way back
