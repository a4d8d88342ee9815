"""LW-DETR's decoder on this project's backbones, as a Detectron2 meta architecture.

Source: Chen et al., LW-DETR: A transformer replacement to YOLO for real-time detection, arXiv 2406.03459, in the
implementation of Hugging Face's transformers. The ViT and its pyramid take the place of the backbone there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from soma_det.modeling.meta_arch.rcnn import Adapted

# Name in the log -> the losses of transformers whose names start so; each of these comes for every decoder layer.
LOSSES = {"loss_cls": "loss_ce", "loss_box_l1": "loss_bbox", "loss_box_giou": "loss_giou"}


class PackedFeatures(nn.Module):
    """Stands where transformers has a backbone: takes maps that :func:`pack_features` has put into one tensor."""

    def __init__(self, strides: list[int]):
        super().__init__()
        self.strides = strides

    def forward(self, packed: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(N, C, 1, places), (N, H, W) with 1 on the image -> a (map, mask) for each stride."""
        height, width = pixel_mask.shape[1:]
        sizes = [(height // stride, width // stride) for stride in self.strides]
        maps = packed.squeeze(2).split([h * w for h, w in sizes], dim=2)
        masks = [F.interpolate(pixel_mask[None].float(), size=size)[0].bool() for size in sizes]
        return [(part.unflatten(2, size), mask) for part, size, mask in zip(maps, sizes, masks)]


def pack_features(maps: list[Tensor]) -> Tensor:
    """Maps (N, C, H, W) of several levels -> (N, C, 1, places), in the place of transformers' image tensor."""
    return torch.cat([features.flatten(2) for features in maps], dim=2).unsqueeze(2)


class LwDETR(DenseDetector):
    """LW-DETR on the features of a Detectron2 backbone.

    Args:
        head: transformers' LwDetrForObjectDetection with :class:`PackedFeatures` for its backbone.
        detections: at most so many for an image.
    """

    def __init__(
        self, *, backbone: Backbone, head: nn.Module, head_in_features: list[str], detections: int, **kwargs: Any
    ):
        super().__init__(backbone, head, head_in_features, **kwargs)
        self.detections = detections

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``__init__`` that a config stands for."""
        backbone, detr = build_backbone(cfg), cfg.MODEL.DETR
        shapes = backbone.output_shape()
        missing = [name for name in detr.IN_FEATURES if name not in shapes]
        if missing:
            raise ValueError(f"MODEL.DETR.IN_FEATURES has {missing}: the backbone gives {', '.join(shapes)}.")
        return {
            "backbone": backbone,
            "head": build_head(cfg, [shapes[name] for name in detr.IN_FEATURES]),
            "head_in_features": list(detr.IN_FEATURES),
            "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else {"instances": ...} for each image, as Detectron2's detectors."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        packed, mask = pack_features([features[name] for name in self.head_in_features]), image_mask(images)
        # The losses take logarithms of probabilities, which bfloat16 rounds to 1.
        with torch.autocast(images.tensor.device.type, enabled=False):
            if self.training:
                return self._losses(packed.float(), mask, images, batched_inputs)
            outputs = self.head(packed.float(), pixel_mask=mask)
        results = zip(outputs.logits, outputs.pred_boxes, images.image_sizes, batched_inputs)
        return [{"instances": self._detections(*result)} for result in results]

    def _losses(self, packed: Tensor, mask: Tensor, images: ImageList, inputs: list[dict]) -> dict[str, Tensor]:
        labels = [
            to_labels(entry["instances"].to(self.device), size) for entry, size in zip(inputs, images.image_sizes)
        ]
        parts, config = self.head(packed, pixel_mask=mask, labels=labels).loss_dict, self.head.config
        weights = (config.class_loss_coefficient, config.bbox_loss_coefficient, config.giou_loss_coefficient)
        return {
            name: weight * torch.stack([value for key, value in parts.items() if key.startswith(prefix)]).sum()
            for (name, prefix), weight in zip(LOSSES.items(), weights)
        }

    def _detections(self, logits: Tensor, boxes: Tensor, size: tuple[int, int], entry: dict) -> Instances:
        """The best of all (query, class) pairs; nothing is suppressed."""
        classes = logits.shape[1]
        scores, best = logits.sigmoid().flatten().topk(min(self.detections, logits.numel()))
        result = Instances(size)
        center, extent = boxes[best // classes].split(2, dim=1)
        corners = torch.cat([center - extent / 2, center + extent / 2], dim=1)
        result.pred_boxes = Boxes(corners * corners.new_tensor([size[1], size[0]] * 2))
        result.scores, result.pred_classes = scores, best % classes
        if torch.compiler.is_exporting():  # which cannot follow that empty boxes are removed
            return result
        return detector_postprocess(result, entry.get("height", size[0]), entry.get("width", size[1]))


@META_ARCH_REGISTRY.register()
class AdaptedLwDETR(Adapted, LwDETR):
    """LW-DETR with the backbone's auxiliary losses and INPUT.PAD_TO_CROP."""


def build_head(cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
    """transformers' LW-DETR of MODEL.DETR for feature maps of these shapes, with random weights.

    Raises:
        ImportError: transformers or scipy is not installed.
        ValueError: the number of channels cannot be shared among the attention's heads.
    """
    try:
        import scipy  # noqa: F401  (transformers' matcher needs it)
        from transformers import LwDetrConfig, LwDetrForObjectDetection
    except ImportError as error:
        raise ImportError(
            "MODEL.META_ARCHITECTURE AdaptedLwDETR needs transformers and scipy: pip install 'soma_det[detr]'."
        ) from error
    detr, channels, strides = cfg.MODEL.DETR, shapes[0].channels, [shape.stride for shape in shapes]
    if channels % 16:
        raise ValueError(f"MODEL.PYRAMID.OUT_CHANNELS is {channels}: LW-DETR needs a multiple of 16, its heads.")
    settings: dict[str, Any] = {
        "num_labels": detr.NUM_CLASSES,
        "d_model": channels,
        "projector_scale_factors": [1.0] * len(strides),  # their number alone counts: the pyramid has made the levels
        "num_queries": detr.NUM_QUERIES,
        "decoder_layers": detr.DECODER_LAYERS,
        "decoder_ffn_dim": 8 * channels,
        "group_detr": detr.GROUPS,
    }
    head = LwDetrForObjectDetection(LwDetrConfig(**settings))
    head.model.backbone = PackedFeatures(strides)
    return head


def image_mask(images: ImageList) -> Tensor:
    """(N, H, W) int64: 1 on the image, 0 on its padding."""
    height, width = images.tensor.shape[-2:]
    sizes = torch.tensor([list(size) for size in images.image_sizes], device=images.tensor.device)
    rows = torch.arange(height, device=sizes.device)[None, :, None] < sizes[:, :1, None]
    columns = torch.arange(width, device=sizes.device)[None, None] < sizes[:, 1:, None]
    return (rows & columns).long()


def to_labels(instances: Instances, size: tuple[int, int]) -> dict[str, Tensor]:
    """Ground truth as transformers wants it: classes, and (center, extent) relative to the image without padding."""
    boxes = instances.gt_boxes.tensor / instances.gt_boxes.tensor.new_tensor([size[1], size[0]] * 2)
    center, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return {"class_labels": instances.gt_classes, "boxes": torch.cat([center, extent], dim=1)}
