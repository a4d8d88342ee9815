"""A timm Vision Transformer as a source of stride-16 feature maps."""

import json
import logging
import os
from typing import Sequence

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

IMG_SIZE = "img_size"  # key of a safetensors file's metadata: [H, W] in pixels, as JSON
TWIN_SEED = 20_412_077  # of no meaning, and used for nothing else

logger = logging.getLogger(__name__)


class TimmViT(nn.Module):
    """The blocks of a timm ViT, giving one feature map for each of some blocks.

    Attributes:
        model: the timm model; its Transformer blocks are ``model.blocks``.
        embed_dim: channels of the feature maps.
        patch_size: their stride, pixels.
    """

    def __init__(self, model: nn.Module, out_blocks: Sequence[int]):
        super().__init__()
        depth = len(model.blocks)
        absent = [block for block in out_blocks if not -depth <= block < depth]
        if absent or not out_blocks:
            raise ValueError(f"MODEL.VIT.OUT_BLOCKS {list(out_blocks)}: this ViT has blocks 0..{depth - 1}.")
        self.model = model
        self.out_blocks = [block % depth for block in out_blocks]
        if self.out_blocks != sorted(set(self.out_blocks)):
            raise ValueError(
                f"MODEL.VIT.OUT_BLOCKS {list(out_blocks)} has to rise: maps come in the order of the blocks."
            )
        self.embed_dim = model.embed_dim
        self.patch_size = model.patch_embed.patch_size[0]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) with H and W multiples of the patch size -> a (N, C, H / patch, W / patch) for each block.

        No block below the first trainable parameter takes part in the backward pass, since neither the images nor
        anything before it requires a gradient; nor is a block after the last one asked for computed at all.
        """
        return self.model.forward_intermediates(
            x, indices=self.out_blocks, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )


def create_timm_vit(
    name: str,
    weights: str,
    patch_size: int,
    img_size: Sequence[int],
    drop_path: float = 0.0,
) -> nn.Module:
    """A timm ViT without classifier, its pretrained patch and position embeddings resampled.

    Args:
        name: a model of timm, with or without a pretrained tag.
        weights: "" for random ones, "timm" for timm's hub, or a file (.safetensors, .pth) of this model.
        patch_size: pixels.
        img_size: (H, W), pixels. Other sizes work too; position embeddings are then resampled at every call.
        drop_path: stochastic depth rate of the last block.

    Raises:
        ValueError: timm has no such model, or it is not a ViT, or the sizes do not fit.
        FileNotFoundError: the file of weights does not exist.
        RuntimeError: the weights cannot be had or do not fit.
    """
    check_weights(name, weights)
    if any(size % patch_size for size in img_size):
        raise ValueError(f"MODEL.VIT.IMG_SIZE {list(img_size)} has to be a multiple of PATCH_SIZE {patch_size}.")
    _check_name(name)
    own_size = _noted_size(name, weights) or img_size
    model = _create(name, weights, patch_size=patch_size, img_size=tuple(own_size), drop_path_rate=drop_path)
    if not hasattr(model, "blocks") or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{name} is not a ViT with .blocks: choose one of timm.list_models('vit_*').")
    if list(own_size) != list(img_size):
        model.set_input_size(tuple(img_size))
    logger.info(
        "%s: %d blocks, %s", name, len(model.blocks), f"weights from {weights}" if weights else "random weights"
    )
    return model


def check_weights(name: str, weights: str) -> None:
    """Raise a FileNotFoundError where ``weights``, see create_timm_vit, is a file that does not exist."""
    if weights not in ("", "timm") and not os.path.isfile(weights):
        raise FileNotFoundError(
            f"MODEL.VIT.WEIGHTS names {weights!r}, which does not exist. Give a .safetensors or .pth file of {name}, "
            "'timm' to download it, or '' for random weights."
        )


def _noted_size(name: str, weights: str) -> list[int] | None:
    """(H, W) in pixels that a file's position embeddings are for; None where it does not say, and timm takes them as square."""
    if not weights.endswith(".safetensors"):
        return None
    try:
        with safe_open(weights, "pt") as file:
            noted = (file.metadata() or {}).get(IMG_SIZE)
    except SafetensorError as error:
        raise RuntimeError(_weights_remedy(name, weights, error)) from error
    return noted and json.loads(noted)


def _create(name: str, weights: str, **options) -> nn.Module:
    options.update(num_classes=0, dynamic_img_size=True)
    try:
        model = timm.create_model(name, **options)
    except Exception as error:  # timm raises whatever its constructors raise
        raise ValueError(f"timm cannot build {name} as a ViT with {options}: {error}") from error
    if not weights:
        return model
    if weights != "timm":
        options["pretrained_cfg_overlay"] = dict(file=weights)
    del model  # two more are built next
    try:
        return _create_pretrained(name, options)
    except Exception as error:  # timm, huggingface_hub and torch each raise their own kinds
        raise RuntimeError(_weights_remedy(name, weights, error)) from error


def _create_pretrained(name: str, options: dict) -> nn.Module:
    """timm leaves at random what a file lacks, without a word; such weights are those of an untrained twin."""
    twins = []
    for pretrained in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TWIN_SEED)
            twins.append(timm.create_model(name, pretrained=pretrained, **options))
    untrained, model = dict(twins[0].named_parameters()), twins[1]
    left = [n for n, p in model.named_parameters() if p.ndim > 1 and p.std() > 0 and torch.equal(p, untrained[n])]
    if left:
        raise ValueError(f"{len(left)} weights are not in it, such as {left[:3]}")
    return model


def _check_name(name: str) -> None:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('_patch')[0]}*")[:8]
        raise ValueError(f"timm {timm.__version__} has no model {name!r}. Similar ones: {near}.")


def _weights_remedy(name: str, weights: str, error: Exception) -> str:
    if weights == "timm":
        return (
            f"The pretrained weights of {name} could not be loaded from timm's hub ({type(error).__name__}: {error}). "
            "Without access to it, download them elsewhere and set MODEL.VIT.WEIGHTS to the .safetensors or .pth file."
        )
    return f"{weights} does not hold the weights of {name}: {error}"


def freeze_leading_blocks(vit: nn.Module, count: int) -> None:
    """Freeze the embeddings and the first ``count`` blocks of a timm ViT; with 0 nothing is frozen.

    Raises:
        ValueError: there are not that many blocks.
    """
    depth = len(vit.blocks)
    if not 0 <= count <= depth:
        raise ValueError(f"MODEL.VIT.FROZEN_BLOCKS is {count}, outside 0..{depth}, the number of blocks of this ViT.")
    if count == 0:
        return
    blocks = set(map(id, vit.blocks[count:].parameters()))
    for parameter in vit.parameters():
        if id(parameter) not in blocks:
            parameter.requires_grad_(False)


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of scalars in the parameters of a module, or in the trainable ones only."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
