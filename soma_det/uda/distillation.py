"""Learning from a teacher's distributions in Faster R-CNN, after ALDI++ (Kay et al., arXiv 2403.12029).

Two things differ from the published code. Anchors are in Detectron2's order everywhere; there the mask that chooses
them is in another order than what it chooses from. And the regions are the teacher's own, so that all it says about an
image is known before the student sees it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor


class AnchorOutputs(NamedTuple):
    """What an RPN says of N images, level by level, R anchors in all.

    Attributes:
        anchors: of each level, (R_l, 4) pixels.
        logits: of each level, (N, R_l), of objectness.
        deltas: of each level, (N, R_l, 4).
    """

    anchors: list[Boxes]
    logits: list[Tensor]
    deltas: list[Tensor]


class RegionOutputs(NamedTuple):
    """What the box head says of P regions: logits (P, K + 1), the background last; deltas (P, 4) or (P, 4 K)."""

    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's distributions on one image.

    Attributes:
        objectness: (R,) logits.
        anchor_deltas: (R, 4).
        regions: of P proposals, ``proposal_boxes`` (P, 4) in pixels.
        outputs: of the box head on them.
    """

    objectness: Tensor
    anchor_deltas: Tensor
    regions: Instances
    outputs: RegionOutputs


def anchor_outputs(rpn: RPN, features: dict[str, Tensor]) -> AnchorOutputs:
    """Run an RPN's head, in the order of anchors that its own losses use: row, column, anchor."""
    maps = [features[name] for name in rpn.in_features]
    logits, deltas = rpn.rpn_head(maps)
    size = rpn.anchor_generator.box_dim
    return AnchorOutputs(
        rpn.anchor_generator(maps),
        [level.movedim(1, -1).flatten(1) for level in logits],
        [level.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in deltas],
    )


def region_features(heads: StandardROIHeads, features: dict[str, Tensor], regions: list[Boxes]) -> Tensor:
    """The box head's features (P, D) of regions, one list entry for each image."""
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], regions)
    return heads.box_head(pooled)


def region_outputs(heads: StandardROIHeads, features: dict[str, Tensor], regions: list[Boxes]) -> RegionOutputs:
    """Run the box head on regions, one list entry for each image."""
    return RegionOutputs(*heads.box_predictor(region_features(heads, features, regions)))


def anchor_losses(
    student: AnchorOutputs, objectness: Tensor, deltas: Tensor, chosen: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Binary cross-entropy of objectness over chosen anchors, and L1 of deltas over those on boxes.

    Args:
        objectness, deltas: the teacher's, (N, R) logits and (N, R, 4).
        chosen: (N, R): 1 on a box, 0 background, -1 not chosen.
        temperature: divides the teacher's logits.
    """
    logits, own = cat(student.logits, 1).float(), cat(student.deltas, 1).float()
    used, on_box = chosen >= 0, chosen == 1
    target = (objectness / temperature).sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits[used], target[used], reduction="sum")
    distance = F.l1_loss(own[on_box], deltas[on_box], reduction="sum")
    return {
        "loss_objectness": entropy / max(int(used.sum()), 1),
        "loss_anchor_deltas": distance / max(4 * int(on_box.sum()), 1),
    }


def region_losses(student: RegionOutputs, teacher: RegionOutputs, temperature: float) -> dict[str, Tensor]:
    """Cross-entropy of classes over all regions, and L1 of the deltas of the teacher's class, where it sees an object.

    ``temperature`` divides the teacher's logits. The L1 distance is a sum over such regions, divided by the number of
    all, as in Detectron2's own loss.
    """
    logits, deltas, number = student.logits.float(), student.deltas.float(), max(len(teacher.logits), 1)
    target = (teacher.logits / temperature).softmax(1)
    classes = F.cross_entropy(logits, target, reduction="sum") / number
    seen = teacher.logits.argmax(1)
    on_object = (seen < logits.shape[1] - 1).nonzero().squeeze(1)
    own, other = (_deltas_of(deltas, seen, on_object) for deltas in (deltas, teacher.deltas))
    return {"loss_classes": classes, "loss_region_deltas": F.l1_loss(own, other, reduction="sum") / number}


def _deltas_of(deltas: Tensor, classes: Tensor, rows: Tensor) -> Tensor:
    """(M, 4): of some rows, the deltas of their class; class-agnostic ones are of all classes."""
    if deltas.shape[1] == 4:
        return deltas[rows]
    return deltas.unflatten(1, (-1, 4))[rows, classes[rows]]


def soft_labels(
    outputs: AnchorOutputs, heads: StandardROIHeads, features: dict[str, Tensor], regions: list[Instances]
) -> list[SoftLabels]:
    """What a teacher says of each image, about all anchors and some regions."""
    objectness, deltas = cat(outputs.logits, 1).float(), cat(outputs.deltas, 1).float()
    numbers = [len(image) for image in regions]
    said = region_outputs(heads, features, [image.proposal_boxes for image in regions])
    by_image = zip(said.logits.float().split(numbers), said.deltas.float().split(numbers))
    return [
        SoftLabels(objectness[i], deltas[i], regions[i], RegionOutputs(*of_image))
        for i, of_image in enumerate(by_image)
    ]


def stack_regions(labels: list[SoftLabels]) -> RegionOutputs:
    """The regions of several images, one after the other."""
    return RegionOutputs(
        *(torch.cat([getattr(label.outputs, name) for label in labels]) for name in ("logits", "deltas"))
    )
