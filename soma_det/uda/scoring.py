"""The class probabilities of a detector's boxes, and those that another detector gives to the same boxes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from soma_det.adapters import is_mergeable, merge
from soma_det.data.transforms.augmentation import build_test_augmentation
from soma_det.engine import load_model
from soma_det.uda.distillation import region_outputs

CONFIDENT = 0.5  # confidence of a detection that counts as a box of the image


@dataclass(frozen=True, eq=False)
class BoxProbabilities:
    """What a detector says about the boxes of one image.

    Attributes:
        boxes: (N, 4) XYXY, pixels of the image: the proposals that became detections.
        probabilities: (N, K + 1), background last.
        objectness: 0 to 1, the largest of all proposals; 0 without any.
        confident: detections with a confidence of at least a half.
    """

    boxes: np.ndarray
    probabilities: np.ndarray
    objectness: float
    confident: int


class BoxScorer:
    """A trained Faster R-CNN that says what it thinks of boxes, its own or given ones.

    Args:
        cfg: of the run, MODEL.WEIGHTS naming its checkpoint.

    Raises:
        ValueError: the detector is not a Faster R-CNN, or see :func:`soma_det.engine.load_model`.
    """

    def __init__(self, cfg: CfgNode):
        self.model: Any = load_model(cfg)  # a GeneralizedRCNN, whose parts nn.Module does not know
        check_faster_rcnn(self.model)
        if is_mergeable(self.model):
            merge(self.model)
        self.heads: Any = self.model.roi_heads
        self.resize = build_test_augmentation(min_size=cfg.INPUT.MIN_SIZE_TEST, max_size=cfg.INPUT.MAX_SIZE_TEST)[0]

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> BoxProbabilities:
        """(H, W, 3) uint8 in the order of INPUT.FORMAT -> the boxes that the detector finds, with all probabilities."""
        transform, images, features = self._features(image)
        proposals, _ = self.model.proposal_generator(images, features, None)
        outputs = region_outputs(self.heads, features, [proposals[0].proposal_boxes])
        probabilities = self.heads.box_predictor.predict_probs(outputs, proposals)[0]
        (found,), (kept,) = self.heads.box_predictor.inference(outputs, proposals)
        kept = kept.unique()
        boxes = proposals[0].proposal_boxes.tensor[kept].cpu().numpy()
        logits = proposals[0].objectness_logits
        return BoxProbabilities(
            transform.inverse().apply_box(boxes).reshape(-1, 4),
            probabilities[kept].cpu().numpy(),
            float(logits.max().sigmoid()) if len(logits) else 0.0,
            int((found.scores >= CONFIDENT).sum()),
        )

    @torch.no_grad()
    def score(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """The image as in :meth:`detect`, (N, 4) XYXY pixels -> (N, K + 1) probabilities."""
        transform, images, features = self._features(image)
        given = Instances(images.image_sizes[0])
        tensor = torch.as_tensor(transform.apply_box(boxes).reshape(-1, 4), dtype=torch.float32)
        given.proposal_boxes = Boxes(tensor.to(self.model.device))
        outputs = region_outputs(self.heads, features, [given.proposal_boxes])
        return self.heads.box_predictor.predict_probs(outputs, [given])[0].cpu().numpy()

    def _features(self, image: np.ndarray) -> tuple:
        """The transform to the model's input, the batch of one image, and the pyramid's maps."""
        transform = self.resize.get_transform(image)
        pixels = torch.as_tensor(np.ascontiguousarray(transform.apply_image(image).transpose(2, 0, 1)))
        images: ImageList = self.model.preprocess_image([{"image": pixels}])
        return transform, images, self.model.backbone(images.tensor)


def check_faster_rcnn(model: nn.Module) -> None:
    """Raise a ValueError unless the detector has one box head with a softmax over classes and background."""
    what = type(model).__name__
    if isinstance(model, GeneralizedRCNN):
        heads: Any = model.roi_heads
        what = f"{what} with {type(heads).__name__}"
        plain = isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)
        if plain and isinstance(model.proposal_generator, RPN) and not heads.box_predictor.use_sigmoid_ce:
            return
    raise ValueError(
        f"Margins need a Faster or Mask R-CNN, whose boxes have probabilities with background; this is a {what}. "
        "Train one with MODEL.META_ARCHITECTURE AdaptedRCNN and MODEL.ROI_HEADS.NAME StandardROIHeads."
    )
