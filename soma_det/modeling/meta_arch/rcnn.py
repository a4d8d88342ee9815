"""Detectron2's meta architectures with the losses that some adapters add, and with the authors' way of padding."""

import math
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import ImageList
from torch import Tensor, nn

from soma_det.adapters import pop_auxiliary_losses

GRAY = 114  # gray level of the pixels around an image, as in training (INPUT.AUGMENTATION)

if TYPE_CHECKING:
    from detectron2.modeling import GeneralizedRCNN as MetaArch  # what the mixin stands before
else:
    MetaArch = nn.Module


class Adapted(MetaArch):
    """Mixin before a meta architecture: the backbone's auxiliary losses, and INPUT.PAD_TO_CROP."""

    @configurable
    def __init__(self, *, pad_to: tuple[int, int] = (0, 0), **kwargs: Any):
        """Test images below ``pad_to``, (H, W) in pixels, are padded with gray to it, at the right and the bottom."""
        super().__init__(**kwargs)
        self.pad_to = pad_to

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``__init__`` that a config stands for."""
        pad_to = tuple(cfg.INPUT.AUGMENTATION.CROP_SIZE) if cfg.INPUT.PAD_TO_CROP else (0, 0)
        return {**super().from_config(cfg), "pad_to": pad_to}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As the meta architecture's; in training, the backbone's own losses join the detector's, and its log."""
        outputs = super().forward(batched_inputs)
        return {**outputs, **pop_auxiliary_losses(self.backbone)} if self.training else outputs

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize, pad and batch, as the meta architecture does; ``image_sizes`` are those before the padding."""
        if self.training or self.pad_to == (0, 0):
            return super().preprocess_image(batched_inputs)
        images = [entry["image"] for entry in batched_inputs]
        padded = super().preprocess_image([{"image": _pad(image, self.pad_to)} for image in images])
        return ImageList(padded.tensor, [tuple(image.shape[-2:]) for image in images])


@META_ARCH_REGISTRY.register()
class AdaptedRCNN(Adapted, GeneralizedRCNN):
    """GeneralizedRCNN with the backbone's auxiliary losses, INPUT.PAD_TO_CROP and MODEL.ROI_HEADS.BACKGROUND_PRIOR."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``__init__`` that a config stands for."""
        built = super().from_config(cfg)
        if cfg.MODEL.ROI_HEADS.BACKGROUND_PRIOR:
            expect_background(built["roi_heads"], cfg.MODEL.ROI_HEADS.BACKGROUND_PRIOR)
        return built


@META_ARCH_REGISTRY.register()
class AdaptedRetinaNet(Adapted, RetinaNet):
    """RetinaNet with the backbone's auxiliary losses and INPUT.PAD_TO_CROP."""


def expect_background(heads: nn.Module, share: float) -> None:
    """Let untrained R-CNN heads give every region's background the probability ``share``, in (0, 1): nearly all are.

    Lin et al. (Focal Loss for Dense Object Detection, 2017, section 4.1) do so with sigmoids; here one bias does it.
    """
    for module in heads.modules():
        if isinstance(module, FastRCNNOutputLayers):
            nn.init.constant_(module.cls_score.bias[-1], math.log(module.num_classes * share / (1 - share)))


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, h, w) -> (3, max(h, H), max(w, W))"""
    height, width = image.shape[-2:]
    return F.pad(image, (0, max(size[1] - width, 0), 0, max(size[0] - height, 0)), value=GRAY)
