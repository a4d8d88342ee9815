"""A trained detector in three lines.

from soma_det import Detector

detector = Detector("output/demo")
result = detector("street.jpg")
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image

from soma_det.checkpoint.detection_checkpoint import METADATA, load_tensors
from soma_det.checkpoint.exported import is_exported
from soma_det.config import setup_cfg
from soma_det.engine.exported_predictor import ONNX, TORCH, ExportedPredictor
from soma_det.engine.predictor import Predictor, build_predictor
from soma_det.utils.images import read_image
from soma_det.utils.images import to_rgb as pil_to_rgb
from soma_det.utils.visualizer import draw_detections

CONFIG_FILE, FINAL, LAST, EXPORTED = "config.yaml", "model_final.pth", "last_checkpoint", "detector.safetensors"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

ImageLike = str | os.PathLike | np.ndarray | Image.Image


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """What was found in one image, the most confident first.

    Attributes:
        boxes: (N, 4) float32, x0, y0, x1, y1 in pixels of the image.
        scores: (N,) float32, confidences from 0 to 1.
        class_ids: (N,) int64, positions in ``classes``.
        classes: the names of all classes that the detector knows.
        image: (H, W, 3) uint8, RGB.
        path: the image's file; "" for one that came from memory.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    classes: tuple[str, ...]
    image: np.ndarray
    path: str = ""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def class_names(self) -> list[str]:
        """The class of each detection."""
        return [self.classes[number] for number in self.class_ids]

    def draw(self, width: int = 0) -> np.ndarray:
        """The image with boxes and labels, RGB; ``width`` in pixels, 0 for that of the image but at least 960."""
        instances = Instances(self.image.shape[:2])
        instances.pred_boxes = Boxes(torch.from_numpy(self.boxes))
        instances.scores, instances.pred_classes = torch.from_numpy(self.scores), torch.from_numpy(self.class_ids)
        return draw_detections(self.image, instances, self.classes, 0.0, width)

    def to_supervision(self) -> Any:
        """The same as supervision.Detections; needs the package supervision."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs supervision: pip install 'soma_det[supervision]'.") from error
        names = np.array(self.class_names, dtype=str)
        return supervision.Detections(self.boxes, None, self.scores, self.class_ids, data={"class_name": names})


class Detector:
    """A trained detector, ready to use.

    Args:
        path: the folder of a run (its model_final.pth, else its last checkpoint, else its exported detector), or one
            of these files, with the run's config.yaml beside it, or an .onnx file of tools/export_model.py.
        device: "cuda", "cpu", ...; None takes a GPU where there is one.
        confidence_threshold: 0 to 1; what is less confident is left out.
        opts: KEY VALUE words that override the run's config, such as MODEL.VIT.WEIGHTS and its file for an exported
            detector.
        runtime: of an .onnx file, "onnxruntime" or "openvino"; both run on the CPU.

    Raises:
        FileNotFoundError: the folder, the checkpoint or config.yaml does not exist.
        ImportError: the runtime is not installed.
        ValueError: the checkpoint is of another config or a .pt2 file, or the threshold is outside 0 to 1.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        device: str | None = None,
        confidence_threshold: float = 0.5,
        opts: Sequence[str] = (),
        runtime: str = "onnxruntime",
    ):
        self.predictor: Predictor | ExportedPredictor
        if not 0 <= confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold is {confidence_threshold}: give a number from 0 to 1.")
        self.confidence_threshold = confidence_threshold
        weights = find_weights(Path(path))
        if weights.suffix == TORCH:
            raise ValueError(
                f"{weights} is a program of torch.export, and torch unpickles parts of these, which can execute code. "
                "If you trust it, load it yourself: torch.export.load(path).module(). Else export with --format onnx."
            )
        if weights.suffix == ONNX:
            exported = ExportedPredictor(weights, runtime)
            self.predictor, self.classes = exported, exported.classes
            return
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        words = [*opts, "MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", device, "SOLVER.AMP.ENABLED", "False"]
        cfg = setup_cfg(str(_config_beside(weights)), words)
        self.classes = read_classes(weights, cfg)
        self.predictor = build_predictor(cfg)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> DetectionResult | list[DetectionResult]:
        """The result for one image, or a list of results for a list of images or a folder.

        Args:
            images: a file, an array (H, W, 3) uint8 in RGB, a PIL image, a list of these, or a folder of images.

        Raises:
            FileNotFoundError: a file does not exist, or a folder holds no image.
            OSError: a file is not an image.
            ValueError: an array has another shape or type.
        """
        if isinstance(images, (str, os.PathLike)) and Path(images).is_dir():
            return list(self.stream(images_in(Path(images))))
        if isinstance(images, (str, os.PathLike, np.ndarray, Image.Image)):
            return self._detect(images)
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[DetectionResult]:
        """The results of many images, one by one, so that they need not fit into memory."""
        for image in images:
            yield self._detect(image)

    def _detect(self, image: ImageLike) -> DetectionResult:
        pixels = to_rgb(image)
        found = self.predictor(pixels[:, :, ::-1])
        found = found[found.scores >= self.confidence_threshold]
        found = found[found.scores.argsort(descending=True, stable=True)]
        path = str(image) if isinstance(image, (str, os.PathLike)) else ""
        boxes, classes = found.pred_boxes.tensor.numpy(), found.pred_classes.numpy()
        return DetectionResult(boxes, found.scores.numpy(), classes, self.classes, pixels, path)


def to_rgb(image: ImageLike) -> np.ndarray:
    """Any image as (H, W, 3) uint8 RGB, turned as its EXIF orientation says."""
    if isinstance(image, (str, os.PathLike)):
        if not Path(image).is_file():
            raise FileNotFoundError(f"There is no image {image}.")
        return read_image(image)
    if isinstance(image, Image.Image):
        return pil_to_rgb(image)
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        what = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"An image is a file, a PIL image, or an array (H, W, 3) of uint8 in RGB; this is {what}.")
    return image


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted; a FileNotFoundError if there are none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"There is no image in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}).")
    return files


def find_weights(path: Path) -> Path:
    """The checkpoint or exported detector that a folder or file stands for."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run or checkpoint {path}.")
    last = path / LAST
    names = [FINAL, *([last.read_text(encoding="utf-8").strip()] if last.is_file() else []), EXPORTED]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"There is no checkpoint in {path} (looked for {', '.join(names)}).")


def read_classes(weights: Path, cfg: CfgNode) -> tuple[str, ...]:
    """The names of the classes: those that a checkpoint was saved with, else those of the config."""
    if not is_exported(str(weights)):
        saved = load_tensors(weights, mmap=True).get(METADATA, {}).get("classes")
        if saved:
            return tuple(saved)
    return tuple(cfg.DATASETS.WEATHER.CLASSES)


def _config_beside(weights: Path) -> Path:
    config = weights.with_name(CONFIG_FILE)
    if not config.is_file():
        raise FileNotFoundError(f"There is no {config}: a detector needs its run's {CONFIG_FILE} beside its weights.")
    return config
