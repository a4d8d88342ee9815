"""A model's structure, without storage for its weights."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from soma_det.modeling.freezing import freeze, match_modules


def build_structure(cfg: CfgNode) -> nn.Module:
    """The config's model on torch's device "meta", in seconds for a ViT of any size: to count parameters and list names.

    No pretrained weights are read and nothing is decomposed. SOLVER.FREEZING.MODULES are frozen where that is for good,
    as in training. (A model for a checkpoint is built as usual: with MODEL.WEIGHTS, MODEL.VIT.WEIGHTS are not read.)
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    if cfg.SOLVER.FREEZING.UNTIL == 0:
        freeze(match_modules(model, cfg.SOLVER.FREEZING.MODULES).values())
    return model
