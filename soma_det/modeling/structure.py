"""A model's structure, without storage for its weights."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from soma_det.modeling.freezing import freeze, match_modules


def build_structure(cfg: CfgNode) -> nn.Module:
    """The config's model on torch's device "meta", within seconds for a ViT of any size: to count and name parameters.

    No pretrained weights are read, and no random numbers are drawn. SOLVER.FREEZING.MODULES are frozen where that is
    for good, as in training. A model to load a checkpoint into is built as usual, with MODEL.WEIGHTS set:
    MODEL.VIT.WEIGHTS are not read then.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    if cfg.SOLVER.FREEZING.UNTIL == 0:
        freeze(match_modules(model, cfg.SOLVER.FREEZING.MODULES).values())
    return model
