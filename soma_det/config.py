"""Every config key of this project in one place, and how a config file becomes a config."""

import difflib
import logging
from typing import Callable, Sequence

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from soma_det.adapters import get_adapter

logger = logging.getLogger(__name__)

DOMAINS = ("daytime_clear", "night_sunny", "dusk_rainy", "night_rainy", "daytime_foggy")
CLASSES = ("bus", "bike", "car", "motor", "person", "rider", "truck")


def add_soma_config(cfg: CN) -> None:
    """Add this project's keys, with their defaults, to a Detectron2 config."""
    _add_model(cfg)
    _add_data(cfg)
    _add_solver(cfg)
    _add_test(cfg)


def _add_model(cfg: CN) -> None:
    vit = cfg.MODEL.VIT = CN()
    vit.NAME = "vit_small_patch14_dinov2.lvd142m"  # any timm ViT whose blocks are in .blocks
    # "" for random weights, "timm" for timm's hub,
    # or a file (.safetensors, .pth) with the model's own weights.
    # Not read when MODEL.WEIGHTS names a checkpoint of this project, which holds the ViT too.
    vit.WEIGHTS = "timm"
    vit.PATCH_SIZE = 16  # pixels; pretrained patch embeddings are resampled to it
    vit.IMG_SIZE = [1024, 1024]  # (H, W), pixels: the usual input, for which position embeddings are resampled once
    vit.OUT_BLOCKS = [-1]  # one block: simple feature pyramid (ViTDet); four: one block a level p2..p5 (as SoMA)
    vit.FROZEN_BLOCKS = 4  # leading blocks that stay as pretrained
    vit.DROP_PATH = 0.0  # rate of the last block; falls linearly to 0 at the first
    vit.ACTIVATION_CHECKPOINTING = False  # less memory for one more forward pass through the blocks

    pyramid = cfg.MODEL.PYRAMID = CN()
    pyramid.OUT_CHANNELS = 256

    adapter = cfg.MODEL.ADAPTER = CN()
    adapter.NAME = "soma"  # the method; tools/train_net.py --help lists all, docs/adapters.md describes them
    adapter.BLOCKS = []  # indices; empty: every block that is not frozen ("moa": every other one)
    # Regular expressions of the linear layers in a block; empty: attention and MLP ("moa": query, key and value).
    adapter.TARGETS = []
    adapter.RANK = 16
    adapter.TRAIN_BIAS = True  # of the adapted layers
    adapter.SOMA = CN()
    adapter.SOMA.COMPONENTS = "minor"  # "minor" (SoMA), or the paper's ablations "major", "random"
    # "decompose_first", for ablation: decompose random weights, then load the pretrained ones over the residual.
    adapter.SOMA.ORDER = "load_first"
    adapter.SOMA.CACHE = True  # keep decompositions in $SOMA_DET_CACHE, or ~/.cache/soma_det/decompositions
    adapter.MOA = CN()
    adapter.MOA.EXPERTS = "kronecker"  # or "lora"
    adapter.MOA.RANKS = [1, 2, 4, 8]  # one expert for each
    adapter.REIN = CN()
    adapter.REIN.TOKENS = 100  # for each block; their rank is RANK
    adapter.VPT = CN()
    adapter.VPT.TOKENS = 50  # for each block
    adapter.ADAPTFORMER = CN()
    adapter.ADAPTFORMER.WIDTH = 64  # features of the bottleneck


def _add_data(cfg: CN) -> None:
    weather = cfg.DATASETS.WEATHER = CN()
    weather.PREFIX = "diverse_weather"  # data sets are named <prefix>_<domain>_<list>
    weather.ROOT = ""  # folder of the domains; empty: diverseWeather in $DETECTRON2_DATASETS, or in datasets
    weather.DOMAINS = list(DOMAINS)
    weather.CLASSES = list(CLASSES)
    cfg.DATASETS.COCO_JSON = []  # further data sets: [[name, json file, folder of images(, domain)], ...]
    cfg.DATASETS.SOURCE_TEST = ""  # the member of DATASETS.TEST that is the source domain; all others are unseen

    augmentation = cfg.INPUT.AUGMENTATION = CN()
    augmentation.SCALE_RANGE = [0.1, 2.0]  # random resize, relative to CROP_SIZE
    augmentation.CROP_SIZE = [1024, 1024]  # (H, W), pixels; smaller images are padded
    augmentation.PHOTOMETRIC = True  # random brightness, contrast, saturation, hue and order of the channels


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.BETAS = [0.9, 0.999]  # of AdamW
    cfg.SOLVER.BACKBONE_LR_MULTIPLIER = 0.5  # of the ViT, against SOLVER.BASE_LR
    cfg.SOLVER.BACKBONE_WEIGHT_DECAY_MULTIPLIER = 0.2  # of the ViT, against SOLVER.WEIGHT_DECAY

    annealing = cfg.SOLVER.WEIGHT_DECAY_ANNEALING = CN()
    annealing.ENABLED = True
    annealing.FINAL = 1e-5  # weight decay of the last iteration

    cfg.SOLVER.AMP.DTYPE = "float16"  # or "bfloat16", which CPUs have too; with SOLVER.AMP.ENABLED, TEST.AMP.ENABLED

    freezing = cfg.SOLVER.FREEZING = CN()
    freezing.MODULES = []  # regular expressions of module names to freeze besides the ViT's leading blocks
    freezing.UNTIL = 0  # iteration at which they thaw; 0: never


def _add_test(cfg: CN) -> None:
    cfg.TEST.BATCH_SIZE = 1  # images of one size that a process evaluates at a time
    cfg.TEST.COMPILE = False  # torch.compile the blocks of the ViT; needs a C++ compiler
    cfg.TEST.AMP = CN()
    cfg.TEST.AMP.ENABLED = False  # evaluate the backbone in SOLVER.AMP.DTYPE


def setup_cfg(config_file: str, opts: Sequence[str] = ()) -> CN:
    """The frozen config of a file and of ``KEY VALUE`` overrides.

    Raises:
        ValueError: a key does not exist, a value has a wrong type, or two settings contradict each other.
    """
    cfg = get_cfg()
    add_soma_config(cfg)
    if len(opts) % 2:
        raise ValueError(f"Overrides come in pairs, KEY VALUE; these are {len(opts)} words: {list(opts)}")
    if config_file:
        _merge(cfg, config_file, cfg.merge_from_file, config_file)
    _merge(cfg, "the command line", cfg.merge_from_list, list(opts))
    check_cfg(cfg)
    _drop_late_steps(cfg)
    cfg.freeze()
    return cfg


def _merge(cfg: CN, source: str, merge: Callable, what) -> None:
    try:
        merge(what)
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Wrong setting in {source}: {_explain(error, cfg)}") from error


def _drop_late_steps(cfg: CN) -> None:
    """A shorter training keeps the steps that it reaches, as in newer versions of Detectron2; older ones refuse."""
    late = [step for step in cfg.SOLVER.STEPS if step >= cfg.SOLVER.MAX_ITER]
    if late:
        logger.warning("SOLVER.STEPS %s lie beyond SOLVER.MAX_ITER %d and are left out.", late, cfg.SOLVER.MAX_ITER)
        cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step not in late)


def check_cfg(cfg: CN) -> None:
    """Raise a ValueError for settings that contradict each other, before anything is built."""
    get_adapter(cfg.MODEL.ADAPTER.NAME)
    dtypes = ("float16", "bfloat16")
    if cfg.SOLVER.AMP.DTYPE not in dtypes:
        raise ValueError(f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}: choose one of {dtypes}.")
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.DTYPE != "bfloat16":
        raise ValueError(
            "SOLVER.AMP.ENABLED in float16 needs CUDA: set SOLVER.AMP.DTYPE to bfloat16, or ENABLED to False."
        )
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE != "full_model":
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clipping.CLIP_TYPE!r}: set it to 'full_model', since gradients are "
            "clipped by the norm of the whole model, CLIP_VALUE."
        )
    if cfg.TEST.BATCH_SIZE < 1:
        raise ValueError(f"TEST.BATCH_SIZE is {cfg.TEST.BATCH_SIZE}: give the number of images, 1 or more.")
    source = cfg.DATASETS.SOURCE_TEST
    if source and source not in cfg.DATASETS.TEST:
        raise ValueError(
            f"DATASETS.SOURCE_TEST is {source!r}, which is not in DATASETS.TEST {tuple(cfg.DATASETS.TEST)}."
        )


def check_device(cfg: CN) -> None:
    """Raise a ValueError where MODEL.DEVICE is no device of torch's, or a GPU that is not there."""
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, which is no device: set it to cuda or cpu.") from error
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


def _explain(error: Exception, cfg: CN) -> str:
    """The error's own words and, for an unknown key, the nearest key that exists."""
    message = str(error.args[0]) if error.args else str(error)
    word = message.rsplit(" ", 1)[-1].strip("'\"")
    near = difflib.get_close_matches(word, _keys(cfg), n=1, cutoff=0.5) if "key" in message.lower() else []
    return message + (f". Did you mean {near[0]}?" if near else "")


def _keys(cfg: CN, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, CN) else [prefix + key]
    return keys
