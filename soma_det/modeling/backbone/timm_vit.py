"""A timm model as a Detectron2 backbone, and the plain Vision Transformers: a feature map for each of some blocks."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from soma_det.adapters.selection import find_blocks
from soma_det.config.checks import check_vit_name, check_vit_size
from soma_det.modeling.backbone.input_size import input_size
from soma_det.modeling.backbone.pretrained import check_weights, load_weights, own_img_size

TimmModel = Any  # an nn.Module with forward_intermediates; timm has no type for it
REMEDY = (
    "Choose another MODEL.VIT.NAME, for example a DINOv2 or DINOv3 from timm.list_models('vit_*'), or for a Swin, "
    "Hiera or ConvNeXt set MODEL.BACKBONE.NAME to build_soma_hierarchical_backbone."
)

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A timm model and those of its intermediate maps that are handed on.

    Args:
        model: kept as ``model``; all of it that trains is in its blocks, see :func:`find_blocks`.
        indices: of the maps, as ``forward_intermediates`` counts them.
        shapes: of the maps, by the names that they get, in the same order.
    """

    def __init__(self, model: TimmModel, indices: Sequence[int], shapes: dict[str, ShapeSpec]):
        super().__init__()
        self.model, self.indices, self.input_size = model, list(indices), input_size(model)
        self._out_features = list(shapes)
        self._out_feature_channels = {name: shape.channels for name, shape in shapes.items()}
        self._out_feature_strides = {name: shape.stride for name, shape in shapes.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), H and W multiples of the largest stride -> {name: (N, C, H / stride, W / stride), ...}

        No block below the first trainable parameter takes part in the backward pass; none after the last is computed.
        """
        height, width = x.shape[-2:]
        maps = self.model.forward_intermediates(
            self.input_size.pad(x), indices=self.indices, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        strides = self._out_feature_strides
        features = zip(self._out_features, maps, strict=True)
        return {name: map_[..., : height // strides[name], : width // strides[name]] for name, map_ in features}

    def frozen_modules(self, blocks: int) -> list[str]:
        """Names of what comes before the first block that is not frozen: the layer that embeds patches, and blocks."""
        stem = [name for name in ("patch_embed", "stem") if hasattr(self.model, name)]
        return [*stem, *find_blocks(self.model)[:blocks]]


class TimmViT(TimmBackbone):
    """The blocks of a timm ViT. Features are named block0, block1, ...; their stride is the patch size.

    Args:
        out_blocks: indices of the blocks whose outputs are handed on, in increasing order; -1 is the last.

    Raises:
        ValueError: a block does not exist, or the blocks are not in increasing order.
    """

    def __init__(self, model: TimmModel, out_blocks: Sequence[int]):
        depth = len(model.blocks)
        if not out_blocks or not all(-depth <= block < depth for block in out_blocks):
            raise ValueError(f"MODEL.VIT.OUT_BLOCKS {list(out_blocks)}: this ViT has blocks 0..{depth - 1}.")
        indices = [block % depth for block in out_blocks]
        if indices != sorted(set(indices)):
            raise ValueError(
                f"MODEL.VIT.OUT_BLOCKS {list(out_blocks)} must be in increasing order, as their maps come."
            )
        shape = ShapeSpec(channels=model.embed_dim, stride=model.patch_embed.patch_size[0])
        super().__init__(model, indices, {f"block{index}": shape for index in indices})


def find_vits(model: nn.Module) -> dict[str, TimmBackbone]:
    """The timm models of a detector, plain ViTs and others, by their names in it; {} where it has another backbone."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TimmBackbone)}


def create_timm_vit(
    name: str, weights: str, patch_size: int, img_size: Sequence[int], drop_path: float = 0.0
) -> TimmModel:
    """A timm ViT without classifier, its pretrained patch and position embeddings resampled.

    Args:
        name: a model of timm, with or without a pretrained tag.
        weights: "" for random ones, "timm" for timm's hub, or a file (.safetensors, .pth) of this model.
        patch_size: pixels.
        img_size: (H, W), pixels. Other sizes work too; position embeddings are then resampled at every call. BEiT,
            which has a table of relative positions for one size, takes images up to this size, which are padded.
        drop_path: stochastic depth rate of the last block.

    Raises:
        ValueError: timm has no such model, or it is not a ViT that fits, or the sizes do not fit.
        FileNotFoundError: the file of weights does not exist.
        RuntimeError: the weights cannot be had or do not fit.
    """
    check_weights(name, weights)
    check_vit_name(name)
    check_vit_size(img_size, patch_size)
    own_size = own_img_size(name, weights)
    options = {"patch_size": patch_size, "img_size": tuple(img_size), "drop_path_rate": drop_path}
    options |= _size_options(name) | ({"img_size": tuple(own_size)} if own_size else {})
    model = build_timm(name, weights, options, REMEDY)
    if weights not in ("", "timm"):
        load_weights(model, name, weights)
    if own_size and own_size != list(img_size) and hasattr(model, "set_input_size"):
        model.set_input_size(tuple(img_size))
    source = f"weights from {weights}" if weights else "random weights"
    logger.info("%s: %d blocks, %s", name, len(model.blocks), source)
    return model


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of scalars in the parameters of a module, or in the trainable ones only."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _size_options(name: str) -> dict[str, Any]:
    """What makes the model take images of the detector's sizes; a ValueError where nothing does, or it is not a ViT."""
    with torch.device("meta"):  # its structure alone: takes no memory and draws no random numbers
        sketch = timm.create_model(name)
    if not hasattr(sketch, "blocks") or not hasattr(sketch, "forward_intermediates"):
        raise ValueError(f"MODEL.VIT.NAME {name!r} is not a ViT whose blocks are in .blocks. {REMEDY}")
    takes, kind = inspect.signature(type(sketch)).parameters, f"MODEL.VIT.NAME {name!r}: timm's {type(sketch).__name__}"
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    absent = sorted({"img_size", "patch_size"} - takes.keys())
    if absent and not takes_any:
        raise ValueError(f"{kind} takes no {absent[0]}. {REMEDY}")
    if takes_any or "dynamic_img_size" in takes:
        return {"dynamic_img_size": True}
    if not getattr(getattr(sketch, "patch_embed", None), "strict_img_size", True):
        # SAM's tables of relative positions stay as in the pretraining, and are resampled at each call.
        return {"img_size": sketch.patch_embed.img_size}
    if not hasattr(sketch, "set_input_size"):
        raise ValueError(f"{kind} has no option to take images of another size than its own. {REMEDY}")
    return {}


def build_timm(name: str, weights: str, options: dict[str, Any], remedy: str) -> TimmModel:
    """timm's model without classifier; the errors are those of :func:`create_timm_vit`."""
    try:
        return timm.create_model(name, pretrained=weights == "timm", num_classes=0, **options)
    except Exception as error:  # timm's constructors, huggingface_hub and torch each raise their own kinds
        if weights == "timm":
            raise RuntimeError(
                f"The pretrained weights of {name} could not be loaded from timm's hub ({error!r}). "
                "Download them elsewhere and set MODEL.VIT.WEIGHTS to the .safetensors or .pth file."
            ) from error
        raise ValueError(
            f"MODEL.VIT.NAME {name!r}: timm cannot build it with {options} ({error!r}). {remedy}"
        ) from error
