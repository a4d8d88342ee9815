"""A detector small enough to train for some iterations in a second, and images to train it on."""

from pathlib import Path

from detectron2.config import CfgNode
from torch import nn
from voc_fixtures import write_domain

from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.modeling.backbone.timm_vit import TimmViT

DOMAINS = ("daytime_clear", "night_sunny")
CONFIG = str(Path(__file__).parents[1] / "configs" / "Base-SoMA.yaml")


def write_data(root: Path) -> Path:
    """Two domains of 6 training and 3 test images each, 64 x 48 pixels."""
    for domain in DOMAINS:
        splits = {split: [f"{domain}_{split}{i}" for i in range(n)] for split, n in (("train", 6), ("test", 3))}
        write_domain(root, domain, splits)
    return root


def options(data: Path, output: Path, **changes) -> list:
    """KEY VALUE words for a tiny run; ``changes`` are given with __ for each dot."""
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.VIT.NAME": "test_vit",
        "MODEL.VIT.WEIGHTS": "",
        "MODEL.VIT.IMG_SIZE": [64, 64],
        "MODEL.VIT.FROZEN_BLOCKS": 2,
        "MODEL.ADAPTER.RANK": 2,
        "MODEL.PYRAMID.OUT_CHANNELS": 8,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "DATASETS.WEATHER.PREFIX": "tiny",
        "DATASETS.WEATHER.ROOT": str(data),
        "DATASETS.WEATHER.DOMAINS": list(DOMAINS),
        "DATASETS.TRAIN": ["tiny_daytime_clear_train"],
        "DATASETS.TEST": ["tiny_daytime_clear_test", "tiny_night_sunny_test"],
        "DATASETS.SOURCE_TEST": "tiny_daytime_clear_test",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.AUGMENTATION.CROP_SIZE": [64, 64],
        "INPUT.AUGMENTATION.SCALE_RANGE": [0.5, 1.5],
        "INPUT.MIN_SIZE_TEST": 48,
        "INPUT.MAX_SIZE_TEST": 64,
        "SOLVER.AMP.CPU": "off",  # the same numbers on every CPU
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.STEPS": [4],
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "OUTPUT_DIR": str(output),
    }
    keys.update({key.replace("__", "."): value for key, value in changes.items()})
    return [word for pair in keys.items() for word in pair]


def tiny_cfg(data: Path, output: Path, **changes) -> CfgNode:
    """The frozen config of a tiny run, with its data sets registered."""
    cfg = setup_cfg(CONFIG, options(data, output, **changes))
    register_from_config(cfg)
    return cfg


def vit_of(model: nn.Module) -> tuple[str, TimmViT]:
    """The name and the ViT of a detector."""
    return next((name, module) for name, module in model.named_modules() if isinstance(module, TimmViT))
