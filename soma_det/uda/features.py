"""Features of the pretrained ViT, before any adaptation: of whole images, and of the boxes in them."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from soma_det.config.checks import VIT_BACKBONE, check_device
from soma_det.data.transforms.augmentation import build_test_augmentation
from soma_det.modeling.backbone.build import create_pretrained
from soma_det.modeling.backbone.timm_vit import TimmViT


class FrozenFeatures:
    """The patch tokens of the pretrained ViT's last block, averaged in boxes.

    Args:
        cfg: names the ViT and its weights (MODEL.VIT), the size of test images (INPUT), and the device.

    Raises:
        ValueError: the config has no plain ViT, or one with random weights.
        FileNotFoundError, RuntimeError: see :func:`soma_det.modeling.backbone.timm_vit.create_timm_vit`.
    """

    def __init__(self, cfg: CfgNode):
        check_device(cfg)
        if cfg.MODEL.BACKBONE.NAME != VIT_BACKBONE:
            raise ValueError(
                f"Features of a frozen ViT need MODEL.BACKBONE.NAME {VIT_BACKBONE}; it is {cfg.MODEL.BACKBONE.NAME}."
            )
        if not cfg.MODEL.VIT.WEIGHTS:
            raise ValueError(
                "MODEL.VIT.WEIGHTS is empty, and features of random weights say nothing: set it to timm or a file."
            )
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.vit = TimmViT(create_pretrained(cfg, cfg.MODEL.VIT.WEIGHTS), [-1]).eval().to(self.device)
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
        sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
        self.resize: Callable = build_test_augmentation(**sizes)[0].get_transform

    @torch.no_grad()
    def __call__(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 in the order of INPUT.FORMAT, (N, 4) XYXY pixels -> (1 + N, D): the image, then the boxes."""
        height, width = image.shape[:2]
        every = np.concatenate([[[0, 0, width, height]], np.asarray(boxes, dtype=float).reshape(-1, 4)])
        transform = self.resize(image)
        pixels = torch.as_tensor(np.ascontiguousarray(transform.apply_image(image).transpose(2, 0, 1))).float()
        (stride,) = {shape.stride for shape in self.vit.output_shape().values()}
        padding = [-pixels.shape[2] % stride, -pixels.shape[1] % stride]
        padded = F.pad((pixels - self.mean) / self.std, (0, padding[0], 0, padding[1]))
        (tokens,) = self.vit(padded[None].to(self.device)).values()
        scaled = torch.as_tensor(transform.apply_box(every), dtype=torch.float32)
        return average_in_boxes(tokens[0].float().cpu(), scaled / stride).numpy()


def average_in_boxes(tokens: Tensor, boxes: Tensor) -> Tensor:
    """(D, H, W), (N, 4) XYXY in units of tokens -> (N, D): the mean over each box, a token counting by its area there.

    A box without any area inside gives the token that is nearest to its middle.
    """
    height, width = tokens.shape[1:]
    x, y = (_overlap(boxes[:, i], boxes[:, i + 2], size) for i, size in ((0, width), (1, height)))
    return torch.einsum("dhw,nh,nw->nd", tokens, y, x)


def _overlap(start: Tensor, end: Tensor, size: int) -> Tensor:
    """(N, size): the share of an interval that lies in each cell; its rows sum to 1."""
    edges = torch.arange(size, dtype=start.dtype)
    length = (torch.minimum(end[:, None], edges + 1) - torch.maximum(start[:, None], edges)).clamp(min=0)
    nearest = F.one_hot(((start + end) / 2).long().clamp(0, size - 1), size).to(start.dtype)
    total = length.sum(dim=1, keepdim=True)
    return torch.where(total > 1e-6, length / total.clamp(min=1e-6), nearest)
