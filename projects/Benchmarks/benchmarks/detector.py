"""A detector and input for it, made without files."""

from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from benchmarks.contestants import SIZES
from soma_det.config import setup_cfg

CONFIG = Path(__file__).parents[3] / "configs" / "Base-SoMA.yaml"
OBJECTS = 8  # ground-truth boxes in an image


def build_detector(size: str, pixels: int) -> nn.Module:
    """The Faster R-CNN of configs/Base-SoMA.yaml on a plain ViT with random weights, without an adapter."""
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.VIT.NAME": SIZES.get(size, size),
        "MODEL.VIT.WEIGHTS": "",
        "MODEL.VIT.IMG_SIZE": [pixels, pixels],
        "MODEL.VIT.FROZEN_BLOCKS": 0,
        "MODEL.ADAPTER.NAME": "full",
    }
    return build_model(setup_cfg(str(CONFIG), [word for pair in options.items() for word in pair]))


def random_images(count: int, pixels: int, seed: int, labeled: bool) -> list[dict]:
    """Detectron2's input dicts of noise (3, H, W) uint8, with random boxes if ``labeled``."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        image = torch.randint(0, 256, (3, pixels, pixels), generator=generator, dtype=torch.uint8)
        sample = {"image": image, "height": pixels, "width": pixels}
        if labeled:
            corner = torch.rand(OBJECTS, 2, generator=generator) * pixels * 0.7
            extent = (torch.rand(OBJECTS, 2, generator=generator) * 0.2 + 0.05) * pixels
            classes = torch.randint(0, 7, (OBJECTS,), generator=generator)
            boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
            sample["instances"] = Instances((pixels, pixels), gt_boxes=boxes, gt_classes=classes)
        samples.append(sample)
    return samples
