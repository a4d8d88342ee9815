"""A timm Vision Transformer as a Detectron2 backbone: one feature map for each of some blocks."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import timm
import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from soma_det.config.checks import check_vit_name, check_vit_size
from soma_det.modeling.backbone.pretrained import check_weights, load_weights, own_img_size

TimmModel = Any  # an nn.Module with .blocks, .embed_dim, .patch_embed, forward_intermediates; timm has no type for it
REMEDY = "Choose another MODEL.VIT.NAME, for example a DINOv2 or DINOv3 from timm.list_models('vit_*')."

logger = logging.getLogger(__name__)


class TimmViT(Backbone):
    """The blocks of a timm ViT. Features are named block0, block1, ...; their stride is the patch size.

    Args:
        out_blocks: indices of the blocks whose outputs are handed on, in increasing order; -1 is the last.

    Raises:
        ValueError: a block does not exist, or the blocks are not in increasing order.
    """

    def __init__(self, model: TimmModel, out_blocks: Sequence[int]):
        super().__init__()
        depth = len(model.blocks)
        if not out_blocks or not all(-depth <= block < depth for block in out_blocks):
            raise ValueError(f"MODEL.VIT.OUT_BLOCKS {list(out_blocks)}: this ViT has blocks 0..{depth - 1}.")
        self.model = model
        self.out_blocks = [block % depth for block in out_blocks]
        if self.out_blocks != sorted(set(self.out_blocks)):
            raise ValueError(
                f"MODEL.VIT.OUT_BLOCKS {list(out_blocks)} must be in increasing order, as their maps come."
            )
        self._out_features = [f"block{block}" for block in self.out_blocks]
        self._out_feature_channels = dict.fromkeys(self._out_features, model.embed_dim)
        self._out_feature_strides = dict.fromkeys(self._out_features, model.patch_embed.patch_size[0])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), H and W multiples of the patch size -> {"block11": (N, C, H / patch, W / patch), ...}

        No block below the first trainable parameter takes part in the backward pass; none after the last is computed.
        """
        maps = self.model.forward_intermediates(
            x, indices=self.out_blocks, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(self._out_features, maps, strict=True))


def find_vits(model: nn.Module) -> dict[str, TimmViT]:
    """The ViTs of a detector, by their names in it; {} for one with another backbone."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TimmViT)}


def create_timm_vit(
    name: str, weights: str, patch_size: int, img_size: Sequence[int], drop_path: float = 0.0
) -> TimmModel:
    """A timm ViT without classifier, its pretrained patch and position embeddings resampled.

    Args:
        name: a model of timm, with or without a pretrained tag.
        weights: "" for random ones, "timm" for timm's hub, or a file (.safetensors, .pth) of this model.
        patch_size: pixels.
        img_size: (H, W), pixels. Other sizes work too; position embeddings are then resampled at every call.
        drop_path: stochastic depth rate of the last block.

    Raises:
        ValueError: timm has no such model, or it is not a ViT that fits, or the sizes do not fit.
        FileNotFoundError: the file of weights does not exist.
        RuntimeError: the weights cannot be had or do not fit.
    """
    check_weights(name, weights)
    check_vit_name(name)
    check_vit_size(img_size, patch_size)
    own_size = own_img_size(name, weights) or list(img_size)
    options = {"patch_size": patch_size, "img_size": tuple(own_size), "drop_path_rate": drop_path}
    model = _build(name, weights, options | _size_options(name))
    if weights not in ("", "timm"):
        load_weights(model, name, weights)
    if own_size != list(img_size):
        model.set_input_size(tuple(img_size))
    source = f"weights from {weights}" if weights else "random weights"
    logger.info("%s: %d blocks, %s", name, len(model.blocks), source)
    return model


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of scalars in the parameters of a module, or in the trainable ones only."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _size_options(name: str) -> dict[str, bool]:
    """What makes the model take images of any size; a ValueError where nothing does, or it is not a ViT."""
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
    if getattr(getattr(sketch, "patch_embed", None), "strict_img_size", True):
        raise ValueError(f"{kind} has no option to take images of different sizes, as a detector must. {REMEDY}")
    return {}


def _build(name: str, weights: str, options: dict[str, Any]) -> TimmModel:
    try:
        return timm.create_model(name, pretrained=weights == "timm", num_classes=0, **options)
    except Exception as error:  # timm's constructors, huggingface_hub and torch each raise their own kinds
        if weights == "timm":
            raise RuntimeError(
                f"The pretrained weights of {name} could not be loaded from timm's hub ({error!r}). "
                "Download them elsewhere and set MODEL.VIT.WEIGHTS to the .safetensors or .pth file."
            ) from error
        raise ValueError(
            f"MODEL.VIT.NAME {name!r}: timm cannot build it with {options} ({error!r}). {REMEDY}"
        ) from error
