"""What makes a model faster while it is evaluated, and is undone afterwards to the bit."""

from contextlib import ExitStack, contextmanager
from typing import Iterator

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from soma_det.adapters import find_adapter_layers, is_mergeable
from soma_det.engine.hooks import unwrap_ddp
from soma_det.modeling.backbone.timm_vit import TimmViT


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
            stack.enter_context(_backbone_in(unwrap_ddp(model), dtype))
        yield model


@contextmanager
def merged_for_inference(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its adapter layers merged into plain ones, for the length of a ``with`` block.

    The adapter layers are put aside as they are and put back at the end, also after an exception: they are the same
    objects as before, with the same values, gradients and flags, and every module of the model is in training or
    evaluation mode as it was. The plain layers need memory for their weights. A model whose adapter cannot be merged,
    or that has none, runs as it is.
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


class _AutocastBackbone(Backbone):
    """Another backbone under autocast; this project's hand on their features in fp32, in which boxes are pooled."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype):
        super().__init__()
        self.backbone, self.dtype = backbone, dtype

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"p2": (N, C, H/4, W/4), ...}"""
        with torch.autocast(x.device.type, dtype=self.dtype):
            return self.backbone(x)

    @property
    def size_divisibility(self) -> int:
        return self.backbone.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.backbone.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.backbone.output_shape()


@contextmanager
def _backbone_in(detector: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    backbone = detector.get_submodule("backbone")
    detector.backbone = _AutocastBackbone(backbone, dtype).train(backbone.training)
    try:
        yield
    finally:
        detector.backbone = backbone


@contextmanager
def _compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Blocks are compiled one by one: they are alike, so that the code of one serves all."""
    vits = [module for module in model.modules() if isinstance(module, TimmViT)]
    blocks = [block for vit in vits for block in vit.model.get_submodule("blocks").children()]
    if not blocks:
        raise ValueError("TEST.COMPILE compiles the blocks of a ViT, and this model has none: set it to False.")
    try:
        for block in blocks:
            block.compile()
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # as nn.Module starts out; there is no public way back
