"""A model's structure, without storage for its weights."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from soma_det.modeling.freezing import freeze_from_config


def build_structure(cfg: CfgNode) -> nn.Module:
    """The config's model on torch's device "meta", within seconds for a ViT of any size: to count and name parameters.

    No pretrained weights are read, and no random numbers are drawn. The same parameters train as in training.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    freeze_from_config(model, cfg)
    return model
