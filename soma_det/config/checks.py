"""Settings that contradict each other are errors before anything is built."""

from collections.abc import Sequence

import timm
import torch
from detectron2.config import CfgNode as CN

from soma_det.adapters import ADAPTERS

VIT_BACKBONE = "build_soma_vit_backbone"
PATCH_SIZES = (8, 16)  # pixels: the feature pyramid makes stride 4 of them by transposed convolutions of stride 2
MAP_NUMBERS = (1, 4)  # of MODEL.VIT.OUT_BLOCKS: simple pyramid, or a block for each of the levels p2..p5


def has_vit(cfg: CN) -> bool:
    """Whether the backbone is this project's ViT."""
    return cfg.MODEL.BACKBONE.NAME == VIT_BACKBONE


def check_cfg(cfg: CN) -> None:
    """Raise a ValueError for settings that contradict each other."""
    if has_vit(cfg):
        _check_vit(cfg)
    _check_amp(cfg)
    _check_solver(cfg)
    _check_input(cfg)
    _check_test(cfg)


def check_device(cfg: CN) -> None:
    """Raise a ValueError where MODEL.DEVICE is not a device of torch, or a GPU that is not there."""
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, which torch does not know: set it to cuda or cpu."
        ) from error
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, and torch finds no CUDA device: add MODEL.DEVICE cpu "
            "SOLVER.AMP.ENABLED False to the command line. If there is one, its driver may be too old for this torch, "
            f"which was built for CUDA {torch.version.cuda}: see https://pytorch.org/get-started/previous-versions."
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, and there are {torch.cuda.device_count()} GPUs.")


def check_vit_name(name: str) -> None:
    """Raise a ValueError where timm has no model of this name, or no pretrained weights of this tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('_patch')[0]}*")[:8]
        raise ValueError(f"timm {timm.__version__} has no model {name!r}. Similar ones: {near}.")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise ValueError(f"timm {timm.__version__} has no pretrained weights {name!r}. It has {known}.")


def check_vit_size(img_size: Sequence[int], patch_size: int) -> None:
    """Raise a ValueError unless the image's height and width, in pixels, are multiples of the patch size."""
    if len(img_size) != 2 or any(size < 1 or size % patch_size for size in img_size):
        raise ValueError(
            f"MODEL.VIT.IMG_SIZE is {list(img_size)}: give [height, width], multiples of PATCH_SIZE {patch_size}."
        )


def _check_vit(cfg: CN) -> None:
    vit = cfg.MODEL.VIT
    if cfg.MODEL.ADAPTER.NAME not in ADAPTERS:
        raise ValueError(
            f"Unknown adapter {cfg.MODEL.ADAPTER.NAME!r}: set MODEL.ADAPTER.NAME to one of {sorted(ADAPTERS)}."
        )
    check_vit_name(vit.NAME)
    if vit.PATCH_SIZE not in PATCH_SIZES:
        raise ValueError(
            f"MODEL.VIT.PATCH_SIZE is {vit.PATCH_SIZE}, and the strides of a pyramid are powers of 2: set 16 (or 8); "
            "pretrained weights are resampled."
        )
    check_vit_size(vit.IMG_SIZE, vit.PATCH_SIZE)
    if len(vit.OUT_BLOCKS) not in MAP_NUMBERS:
        raise ValueError(
            f"MODEL.VIT.OUT_BLOCKS has {len(vit.OUT_BLOCKS)} blocks: give 1 (simple pyramid) or 4 (one for each level)."
        )


def _check_amp(cfg: CN) -> None:
    amp, dtypes = cfg.SOLVER.AMP, ("float16", "bfloat16")
    if amp.DTYPE not in dtypes:
        raise ValueError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}: choose one of {dtypes}.")
    if amp.ENABLED and cfg.MODEL.DEVICE == "cpu" and amp.DTYPE != "bfloat16":
        raise ValueError(
            "SOLVER.AMP.ENABLED in float16 needs CUDA: set SOLVER.AMP.DTYPE to bfloat16, or ENABLED to False."
        )
    if amp.CPU not in ("auto", "off"):
        raise ValueError(f"SOLVER.AMP.CPU is {amp.CPU!r}: choose 'auto' or 'off'.")


def _check_solver(cfg: CN) -> None:
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE != "full_model":
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clipping.CLIP_TYPE!r}: set it to 'full_model', since gradients are "
            "clipped by the norm of the whole model, CLIP_VALUE."
        )


def _check_input(cfg: CN) -> None:
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}: choose 'RGB' or 'BGR'.")


def _check_test(cfg: CN) -> None:
    if cfg.TEST.BATCH_SIZE < 1:
        raise ValueError(f"TEST.BATCH_SIZE is {cfg.TEST.BATCH_SIZE}: give the number of images, at least 1.")
    source = cfg.DATASETS.SOURCE_TEST
    if source and source not in cfg.DATASETS.TEST:
        raise ValueError(
            f"DATASETS.SOURCE_TEST is {source!r}, which is not in DATASETS.TEST {tuple(cfg.DATASETS.TEST)}."
        )
