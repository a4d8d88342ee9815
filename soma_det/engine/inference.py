"""What makes a model faster while it is evaluated, and is undone afterwards to the bit."""

import copy
from contextlib import ExitStack, contextmanager
from typing import Iterator

import torch
from torch import Tensor, nn

from soma_det.adapters import is_mergeable, merge_adapter


@contextmanager
def prepared_for_inference(
    model: nn.Module, dtype: torch.dtype | None = None, compile_blocks: bool = False
) -> Iterator[nn.Module]:
    """The detector, merged and on request in lower precision and compiled, for the length of a ``with`` block.

    Args:
        model: a detector with a backbone, in training or not; may be wrapped for distributed training.
        dtype: of the backbone, torch.bfloat16 or torch.float16; None leaves the precision alone. The features come out
            in fp32: scores and boxes need the precision, and are little of the work.
        compile_blocks: compile the ViT's blocks, at the first image and at each new image size.

    Raises:
        ValueError: there is no ViT whose blocks could be compiled.
    """
    with ExitStack() as stack:
        merged = stack.enter_context(merged_for_inference(model))
        if compile_blocks:
            stack.enter_context(_compiled_blocks(merged))
        if dtype is not None:
            detector = merged.module if isinstance(merged, nn.parallel.DistributedDataParallel) else merged
            stack.enter_context(_backbone_in(detector.backbone, dtype))
        yield merged


@contextmanager
def merged_for_inference(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its adapted ViT merged into a plain one, for the length of a ``with`` block.

    The adapted ViT is put aside as it is and put back at the end, also after an exception: its modules and parameters
    are the same objects as before, with the same values, gradients and flags, and every module of the model is in
    training or evaluation mode as it was. Meanwhile a merged twin stands in, which needs memory for the merged weights
    and shares all others. Models whose adapter cannot be merged, or that have none, are handed back unchanged.

    Yields:
        The model to run: ``model`` itself, except where that is the adapted ViT.
    """
    modes = {module: module.training for module in model.modules()}
    place = _place_of_vit(model)
    try:
        if place is None:
            yield model
        elif place[0] is None:
            yield _merged_twin(model)
        else:
            parent, name = place
            vit = getattr(parent, name)
            setattr(parent, name, _merged_twin(vit))
            try:
                yield model
            finally:
                setattr(parent, name, vit)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _place_of_vit(model: nn.Module) -> tuple[nn.Module | None, str] | None:
    """(parent, attribute) of the mergeable ViT, (None, "") if it is the model itself, None if there is none."""
    if is_mergeable(model):
        return None, ""
    children = ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())
    return next(((parent, name) for parent, name, child in children if is_mergeable(child)), None)


def _merged_twin(vit: nn.Module) -> nn.Module:
    # The twin's parameters are new objects on the same storage, as merging may give a parameter new data.
    memo = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in vit.parameters()}
    memo |= {id(buffer): buffer.detach() for buffer in vit.buffers()}
    twin = copy.deepcopy(vit, memo)
    merge_adapter(twin)
    return twin.requires_grad_(False)


def in_full_precision(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features in fp32: Detectron2 pools boxes in their precision, and bfloat16 tells 300 pixels from 302, not from 301."""
    return {name: feature.float() for name, feature in features.items()}


@contextmanager
def _backbone_in(backbone: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Run a backbone, which maps images to {"p2": features, ...}, under autocast."""
    forward = backbone.forward

    def autocast_forward(x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(x.device.type, dtype=dtype):
            return in_full_precision(forward(x))

    backbone.forward = autocast_forward
    try:
        yield
    finally:
        del backbone.forward  # uncovers the class's own


@contextmanager
def _compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Blocks are compiled one by one: they are alike, so that the code of one serves all."""
    blocks = next(
        (module.blocks for module in model.modules() if isinstance(getattr(module, "blocks", None), nn.Module)), None
    )
    if blocks is None:
        raise ValueError("TEST.COMPILE compiles the blocks of a ViT, and this model has none: set it to False.")
    try:
        for block in blocks:
            block.compile()
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # as nn.Module starts out; there is no public way back
