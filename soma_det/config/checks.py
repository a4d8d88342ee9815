"""Settings that contradict each other are errors before anything is built."""

from collections.abc import Sequence

import timm
import torch
from detectron2.config import CfgNode as CN

from soma_det.config.adapter import check_adapter
from soma_det.config.defaults import flatten

VIT_BACKBONE = "build_soma_vit_backbone"
HIERARCHICAL_BACKBONE = "build_soma_hierarchical_backbone"
CHOICES = {
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.AMP.CPU": ("auto", "off"),
    "SOLVER.WEIGHT_AVERAGE.METHOD": ("none", "ema", "swa"),
    "INPUT.FORMAT": ("RGB", "BGR"),
}


def has_vit(cfg: CN) -> bool:
    """Whether the backbone is a pretrained model of timm, plain ViT or hierarchical."""
    return cfg.MODEL.BACKBONE.NAME in (VIT_BACKBONE, HIERARCHICAL_BACKBONE)


def is_hierarchical(cfg: CN) -> bool:
    """Whether the backbone is a hierarchical model of timm."""
    return cfg.MODEL.BACKBONE.NAME == HIERARCHICAL_BACKBONE


def check_cfg(cfg: CN) -> None:
    """Raise a ValueError for settings that contradict each other."""
    if has_vit(cfg):
        _check_vit(cfg)
    settings = flatten(cfg)
    for key, choices in CHOICES.items():
        if settings[key] not in choices:
            raise ValueError(f"{key} is {settings[key]!r}: choose {' or '.join(map(repr, choices))}.")
    _check_background_prior(cfg)
    _check_solver(cfg)
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


def check_vit_size(img_size: Sequence[int], stride: int, name: str = "PATCH_SIZE") -> None:
    """Raise a ValueError unless the image's height and width, in pixels, are multiples of the stride."""
    if len(img_size) != 2 or any(size < 1 or size % stride for size in img_size):
        raise ValueError(f"MODEL.VIT.IMG_SIZE is {list(img_size)}: give [height, width], multiples of {name} {stride}.")


def _check_vit(cfg: CN) -> None:
    vit = cfg.MODEL.VIT
    check_adapter(cfg)
    check_vit_name(vit.NAME)
    _check_finest_level(cfg)
    if is_hierarchical(cfg):
        _check_hierarchical(cfg)
        return
    if vit.PATCH_SIZE not in (8, 16):  # the pyramid makes stride 4 of them by transposed convolutions of stride 2
        raise ValueError(f"MODEL.VIT.PATCH_SIZE is {vit.PATCH_SIZE}: set 16 or 8; pretrained weights are resampled.")
    check_vit_size(vit.IMG_SIZE, vit.PATCH_SIZE)
    if len(vit.OUT_BLOCKS) not in (1, 4):
        raise ValueError(
            f"MODEL.VIT.OUT_BLOCKS has {len(vit.OUT_BLOCKS)} blocks: give 1 (simple pyramid) or 4 (one for each level)."
        )


def _check_finest_level(cfg: CN) -> None:
    finest, model = cfg.MODEL.PYRAMID.FINEST_LEVEL, cfg.MODEL
    if finest == 2:
        return
    if finest != 3 or is_hierarchical(cfg) or len(model.VIT.OUT_BLOCKS) != 1:
        raise ValueError(
            f"MODEL.PYRAMID.FINEST_LEVEL is {finest}: set 2, or 3 with a plain ViT and one of MODEL.VIT.OUT_BLOCKS."
        )
    readers = ("RETINANET",) if model.META_ARCHITECTURE == "AdaptedRetinaNet" else ("RPN", "ROI_HEADS")
    for reader in readers:
        if "p2" in model[reader].IN_FEATURES:
            raise ValueError(f"MODEL.{reader}.IN_FEATURES has p2, which MODEL.PYRAMID.FINEST_LEVEL 3 leaves out.")


def _check_hierarchical(cfg: CN) -> None:
    for key, default in (("PATCH_SIZE", 16), ("OUT_BLOCKS", [-1])):
        value = cfg.MODEL.VIT[key]
        if value != default:
            raise ValueError(
                f"MODEL.VIT.{key} is {value}, which is for plain ViTs: leave it out with {HIERARCHICAL_BACKBONE}, "
                "whose pyramid takes the maps of all four stages."
            )
    check_vit_size(cfg.MODEL.VIT.IMG_SIZE, 32, "the last stride")


def _check_background_prior(cfg: CN) -> None:
    key, prior = "MODEL.ROI_HEADS.BACKGROUND_PRIOR", cfg.MODEL.ROI_HEADS.BACKGROUND_PRIOR
    if not 0 <= prior < 1 or (prior and cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE")):
        raise ValueError(f"{key} is {prior}: give a probability below 1, or 0, as with USE_SIGMOID_CE.")


def _check_solver(cfg: CN) -> None:
    amp, clipping = cfg.SOLVER.AMP, cfg.SOLVER.CLIP_GRADIENTS
    if amp.ENABLED and cfg.MODEL.DEVICE == "cpu" and amp.DTYPE != "bfloat16":
        raise ValueError(
            "SOLVER.AMP.ENABLED in float16 needs CUDA: set SOLVER.AMP.DTYPE to bfloat16, or ENABLED to False."
        )
    if clipping.ENABLED and clipping.CLIP_TYPE != "full_model":
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clipping.CLIP_TYPE!r}: set it to 'full_model', since gradients are "
            "clipped by the norm of the whole model, CLIP_VALUE."
        )


def _check_test(cfg: CN) -> None:
    if cfg.TEST.BATCH_SIZE < 1:
        raise ValueError(f"TEST.BATCH_SIZE is {cfg.TEST.BATCH_SIZE}: give the number of images, at least 1.")
    source, sets = cfg.DATASETS.SOURCE_TEST, tuple(cfg.DATASETS.TEST)
    if cfg.TEST.KEEP_BEST and not (source and cfg.TEST.EVAL_PERIOD > 0):
        raise ValueError(
            "TEST.KEEP_BEST compares checkpoints by the source split: set TEST.EVAL_PERIOD and DATASETS.SOURCE_TEST."
        )
    if source and source not in sets:
        raise ValueError(f"DATASETS.SOURCE_TEST is {source!r}, which is not in DATASETS.TEST {sets}.")
