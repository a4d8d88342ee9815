"""Detectors that learn from source and target images in one forward pass.

A batch has source images with ``instances`` and, after them, target images with ``weak_image``. What a teacher said of
a target image is in its ``instances``, boxes that count as annotated, and for soft labels in ``soft``. In evaluation
these detectors are those of :mod:`soma_det.modeling.meta_arch.rcnn`, and so are their checkpoints but for the
discriminators.
"""

from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from soma_det.adapters import pop_auxiliary_losses
from soma_det.modeling.meta_arch.rcnn import AdaptedRCNN, AdaptedRetinaNet
from soma_det.uda.alignment import DomainAlignment
from soma_det.uda.config import aligns
from soma_det.uda.distillation import (
    anchor_losses,
    anchor_outputs,
    region_features,
    region_losses,
    region_outputs,
    soft_labels,
    stack_regions,
)

REGIONS = 64  # of an image, the surest proposals, for the discriminator of regions
OF_BOXES = ("loss_box_reg", "loss_rpn_loc")
Features = dict[str, Tensor]

if TYPE_CHECKING:
    from detectron2.modeling import GeneralizedRCNN as Base  # what the mixin stands before
else:
    Base = nn.Module


class Adaptive(Base):
    """Mixin before a detector: one backbone pass over all images, and the losses of both domains.

    Args:
        labels: the node UDA.LABELS.
        alignment: discriminators, or None.
    """

    @configurable
    def __init__(self, *, labels: CfgNode, alignment: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.labels = labels
        self.alignment = DomainAlignment(**self._alignment_sizes(**alignment)) if alignment else None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of ``__init__`` that a config stands for."""
        align = cfg.UDA.ALIGN
        alignment = dict(levels=align.LEVELS, regions=align.INSTANCE, domains=1 + len(cfg.UDA.TARGET))
        chosen = {**alignment, "weight": align.WEIGHT} if aligns(cfg) else None
        return {**super().from_config(cfg), "labels": cfg.UDA.LABELS, "alignment": chosen}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """In training the losses; those of the target begin with ``target_``. Else as the detector's."""
        if not self.training:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        number = sum("weak_image" not in entry for entry in batched_inputs)
        losses = self.learn_source(*_part(images, features, slice(number)), self._boxes(batched_inputs[:number]))
        target = batched_inputs[number:]
        if target and "instances" in target[0]:
            with EventStorage():  # the detector's own figures are of the source alone
                learned = self.learn_target(*_part(images, features, slice(number, None)), target)
            losses |= {f"target_{name}": self.labels.WEIGHT * loss for name, loss in learned.items()}
        domain = torch.tensor([entry.get("domain", 0) for entry in batched_inputs], device=self.device)
        losses |= self.align(images, features, domain)
        return {**losses, **pop_auxiliary_losses(self.backbone)}

    def learn_source(self, images: ImageList, features: Features, boxes: list[Instances]) -> dict[str, Tensor]:
        """The detector's own losses on annotated images."""
        raise NotImplementedError

    def learn_target(self, images: ImageList, features: Features, entries: list[dict]) -> dict[str, Tensor]:
        """The losses on images that a teacher has labelled."""
        losses = self.learn_source(images, features, self._boxes(entries))
        return {name: loss for name, loss in losses.items() if self.labels.BOXES or name not in OF_BOXES}

    def align(self, images: ImageList, features: Features, domain: Tensor) -> dict[str, Tensor]:
        """The losses of the discriminators."""
        return self.alignment(features, domain) if self.alignment is not None else {}

    def look(self, entries: list[dict]) -> list[dict]:
        """A teacher's pass, in evaluation mode: for each target image, its ``instances`` and, if soft, ``soft``."""
        raise NotImplementedError

    def _alignment_sizes(self, levels: list[str], regions: bool, domains: int, weight: float) -> dict[str, Any]:
        shapes = self.backbone.output_shape()
        unknown = [name for name in levels if name not in shapes]
        if unknown:
            raise ValueError(f"UDA.ALIGN.LEVELS has {unknown}: the pyramid has {sorted(shapes)}.")
        channels = {name: shapes[name].channels for name in levels}
        size = self.roi_heads.box_head.output_shape.channels if regions else 0
        return dict(levels=channels, region_size=size, domains=domains, weight=weight)

    def _boxes(self, entries: list[dict]) -> list[Instances]:
        return [entry["instances"].to(self.device) for entry in entries]

    def _confident(self, detected: list[Instances]) -> list[dict]:
        """Detections above the threshold as if they were annotated; and how confident they are."""
        kept = [image[image.scores > self.labels.THRESHOLD] for image in detected]
        return [{"instances": _as_annotated(image), "scores": image.scores} for image in kept]


@META_ARCH_REGISTRY.register()
class AdaptiveRCNN(Adaptive, AdaptedRCNN):
    """Faster R-CNN; soft labels and the alignment of regions are for its standard heads alone."""

    def learn_source(self, images: ImageList, features: Features, boxes: list[Instances]) -> dict[str, Tensor]:
        """The losses of proposals and regions."""
        proposals, of_proposals = self.proposal_generator(images, features, boxes)
        _, of_regions = self.roi_heads(images, features, proposals, boxes)
        return {**of_regions, **of_proposals}

    def learn_target(self, images: ImageList, features: Features, entries: list[dict]) -> dict[str, Tensor]:
        """As of the source where labels are hard, else the distances to the teacher's distributions."""
        if "soft" not in entries[0]:
            return super().learn_target(images, features, entries)
        said, rpn = [entry["soft"] for entry in entries], self.proposal_generator
        own = anchor_outputs(rpn, features)
        chosen, _ = rpn.label_and_sample_anchors(own.anchors, self._boxes(entries))
        objectness, deltas = (torch.stack([getattr(s, name) for s in said]) for name in ("objectness", "anchor_deltas"))
        of_anchors = anchor_losses(own, objectness, deltas, torch.stack(chosen), self.labels.TEMPERATURE)
        regions = region_outputs(self.roi_heads, features, [s.regions.proposal_boxes for s in said])
        return of_anchors | region_losses(regions, stack_regions(said), self.labels.TEMPERATURE)

    def align(self, images: ImageList, features: Features, domain: Tensor) -> dict[str, Tensor]:
        """Also of the surest proposals, as many from each image."""
        if self.alignment is None or self.alignment.regions is None:
            return super().align(images, features, domain)
        rpn = self.proposal_generator
        proposals = rpn.predict_proposals(*anchor_outputs(rpn, features), images.image_sizes)
        boxes = [image.proposal_boxes[:REGIONS] for image in proposals]
        of = domain.repeat_interleave(torch.tensor([len(image) for image in boxes], device=domain.device))
        return self.alignment(features, domain, region_features(self.roi_heads, features, boxes), of)

    def look(self, entries: list[dict]) -> list[dict]:
        """Detections above the threshold; soft labels are of regions sampled by them, as in training."""
        images = self.preprocess_image([{"image": entry["weak_image"]} for entry in entries])
        features, rpn = self.backbone(images.tensor), self.proposal_generator
        outputs = anchor_outputs(rpn, features)
        proposals = rpn.predict_proposals(*outputs, images.image_sizes)
        detected, _ = self.roi_heads(images, features, proposals)
        labels = self._confident(detected)
        if self.labels.KIND == "hard":
            return labels
        with EventStorage():
            regions = self.roi_heads.label_and_sample_proposals(proposals, [label["instances"] for label in labels])
        soft = soft_labels(outputs, self.roi_heads, features, regions)
        return [{**label, "soft": of_image} for label, of_image in zip(labels, soft)]


@META_ARCH_REGISTRY.register()
class AdaptiveRetinaNet(Adaptive, AdaptedRetinaNet):
    """RetinaNet, with hard labels."""

    def learn_source(self, images: ImageList, features: Features, boxes: list[Instances]) -> dict[str, Tensor]:
        """The losses of all anchors."""
        maps = [features[name] for name in self.head_in_features]
        return self.forward_training(images, maps, self.head(maps), boxes)

    def learn_target(self, images: ImageList, features: Features, entries: list[dict]) -> dict[str, Tensor]:
        """As of the source, whose running number of boxes is left alone."""
        number = getattr(self, "loss_normalizer")  # noqa: B009  (Detectron2 sets it without a type)
        losses = super().learn_target(images, features, entries)
        self.loss_normalizer = number
        return losses

    def look(self, entries: list[dict]) -> list[dict]:
        """Detections above the threshold."""
        images = self.preprocess_image([{"image": entry["weak_image"]} for entry in entries])
        maps = [self.backbone(images.tensor)[name] for name in self.head_in_features]
        return self._confident(self.forward_inference(images, maps, self.head(maps)))


def _part(images: ImageList, features: Features, rows: slice) -> tuple[ImageList, Features]:
    """Some images of a batch, and their features."""
    of_part = {name: level[rows] for name, level in features.items()}
    return ImageList(images.tensor[rows], images.image_sizes[rows]), of_part


def _as_annotated(detected: Instances) -> Instances:
    annotated = Instances(detected.image_size)
    annotated.gt_boxes = Boxes(detected.pred_boxes.tensor.detach().clone())
    annotated.gt_classes = detected.pred_classes
    return annotated
