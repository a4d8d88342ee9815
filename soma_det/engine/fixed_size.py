"""A trained detector from tensor to tensors, for one size of images: what is exported.

It takes the image as it is after resizing and padding, float32 gray levels (3, H, W) in the order of INPUT.FORMAT, and
gives boxes (N, 4) in its pixels, confidences (N,) and classes (N,). Pixel statistics, non-maximum suppression and
position embeddings of this size are inside.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from soma_det.adapters import is_mergeable, merge
from soma_det.engine.trainer import load_model
from soma_det.modeling.backbone.timm_vit import find_vits

OUTPUTS = ("boxes", "scores", "classes")
METADATA = "soma_det"  # key in an exported file
STEP = 32  # pixels: sizes are multiples of it, as the pyramid's strides ask


class TensorDetector(nn.Module):
    """A detector from tensor to tensors. It takes over the detector's padding, of which a fixed size needs none."""

    names = OUTPUTS

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector
        detector.preprocess_image = self._normalize

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(3, H, W) -> boxes (N, 4), confidences (N,), classes (N,)"""
        found = self.detector([{"image": image}])[0]["instances"]
        return found.pred_boxes.tensor, found.scores, found.pred_classes

    def _normalize(self, inputs: list[dict]) -> ImageList:
        image = inputs[0]["image"]
        normalized = (image - self.detector.pixel_mean) / self.detector.pixel_std
        return ImageList(normalized[None], [(image.shape[-2], image.shape[-1])])


class TensorBackbone(TensorDetector):
    """A detector's feature maps."""

    def __init__(self, detector: Any):
        super().__init__(detector)
        self.names = tuple(detector.backbone.output_shape())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(3, H, W) -> a map (1, C, H / stride, W / stride) for each of ``names``"""
        features = self.detector.backbone(self._normalize([{"image": image}]).tensor)
        return tuple(features[name] for name in self.names)


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself.

    Attributes:
        size: (H, W) of the images, pixels.
        format: the order of their channels, "RGB" or "BGR".
        classes: names, in the order of the class numbers.
        outputs: names, in their order.
    """

    size: tuple[int, ...]
    format: str
    classes: tuple[str, ...]
    outputs: tuple[str, ...] = OUTPUTS

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str | None, path: str | os.PathLike) -> "Description":
        """From the JSON in ``path``; a ValueError if it has none."""
        if not text:
            raise ValueError(f"{Path(path)} was not written by tools/export_model.py: it does not say how to use it.")
        found = json.loads(text)
        return cls(tuple(found["size"]), found["format"], tuple(found["classes"]), tuple(found.get("outputs", OUTPUTS)))


def default_size(cfg: CfgNode) -> tuple[int, ...]:
    """(H, W) of the training's crops, pixels, enlarged to multiples of 32."""
    return tuple(-(-side // STEP) * STEP for side in cfg.INPUT.AUGMENTATION.CROP_SIZE)


def fixed_size_detector(cfg: CfgNode, size: Sequence[int]) -> TensorDetector:
    """The merged detector on the CPU, its position embeddings resampled to one size beforehand.

    Args:
        size: (H, W), pixels, multiples of 32.

    Raises:
        ValueError: the size is not a multiple of 32, or see :func:`soma_det.engine.load_model`.
    """
    if len(size) != 2 or any(side < STEP or side % STEP for side in size):
        raise ValueError(f"The size is {list(size)}: give height and width in pixels, multiples of {STEP}.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.INPUT.PAD_TO_CROP = "cpu", False
    cfg.freeze()
    model: Any = load_model(cfg)
    if is_mergeable(model):
        merge(model)
    divisor = max(model.backbone.size_divisibility, 1)
    if any(side % divisor for side in size):
        raise ValueError(f"The size is {list(size)}: this backbone needs multiples of {divisor} pixels.")
    for vit in find_vits(model).values():
        if hasattr(vit.model, "set_input_size"):
            vit.model.set_input_size(img_size=tuple(size))
    return TensorDetector(model).eval()


def require(name: str, extra: str = "export") -> Any:
    """An optional module; an ImportError that names the extra if it is not installed."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"Exported models need {name}: pip install 'soma_det[{extra}]'.") from error
