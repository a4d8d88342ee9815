"""Self-supervised pretraining of a small ViT on pictures without labels (tools/pretrain_vit.py)."""

from soma_det.pretraining.masked import MaskedAutoencoder
from soma_det.pretraining.objectives import TARGETS
from soma_det.pretraining.pictures import PictureStream
from soma_det.pretraining.training import Pretraining, export_weights

__all__ = ["TARGETS", "MaskedAutoencoder", "PictureStream", "Pretraining", "export_weights"]
