"""Draws detections and ground truth with Detectron2's Visualizer. All images are RGB, (H, W, 3), uint8."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke

from soma_det.evaluation.detections import box_xyxy

Color = tuple[float, float, float]  # RGB, 0 to 1
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

# Okabe and Ito's palette, which people with color vision deficiencies can tell apart ("Color Universal Design", 2008),
# its blue lightened so that it shows on night images.
PALETTE = ("#e69f00", "#2bc48a", "#56b4e9", "#e08fc0", "#f0e442", "#ff6a2b", "#5b7cff")
DRAWING_WIDTH = 960  # pixels; smaller images are enlarged to it, so that labels have room
LABEL_PAD = 2.0  # pixels around the text of a label


def class_colors(num_classes: int) -> list[Color]:
    """One fixed color per class; beyond the palette's seven, hues spread by the golden ratio."""
    named = [to_rgb(color) for color in PALETTE[:num_classes]]
    return named + [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.65, 0.95) for i in range(len(PALETTE), num_classes)]


class BoxVisualizer(Visualizer):
    """Detectron2's Visualizer with one fixed color per class, thin outlined boxes and labels that do not overlap."""

    def __init__(self, image: np.ndarray, classes: Sequence[str], scale: float = 1.0):
        """``classes`` are names in the order of the class numbers, ``scale`` is the drawing's size over the image's."""
        super().__init__(image, scale=scale)
        self.classes = classes
        self.colors = class_colors(len(classes))
        width, height = self.output.width * scale, self.output.height * scale
        self.font_pixels = float(np.clip(np.sqrt(width * height) / 55, 9, 22))
        if scale != 1:
            self.output.ax.images[0].set_interpolation("lanczos")  # VisImage's "nearest" shows blocks

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draw detections with class and confidence; of labels that overlap, the most confident one stays."""
        scores, numbers = predictions.scores.tolist(), predictions.pred_classes.tolist()
        labels = [f"{self.classes[c]} {100 * s:.0f}%" for c, s in zip(numbers, scores)]
        return self._draw(predictions.pred_boxes.tensor.cpu().numpy(), numbers, labels, np.argsort(scores)[::-1])

    def draw_dataset_dict(self, dic: Mapping) -> VisImage:
        """Draw the ground truth of a record in Detectron2's format, labeled with the class."""
        annotations = dic.get("annotations", [])
        boxes = np.array([box_xyxy(a) for a in annotations]).reshape(-1, 4)
        numbers = [a["category_id"] for a in annotations]
        labels = [self.classes[c] + " (crowd)" * bool(a.get("iscrowd")) for c, a in zip(numbers, annotations)]
        return self._draw(boxes, numbers, labels)

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 1.0, edge_color: Color | str = "g", line_style: str = "-"
    ) -> VisImage:
        """As in Visualizer, but thin, opaque, and with a dark edge that shows on any background."""
        super().draw_box(box_coord, alpha, edge_color, line_style)
        width = max(1.6, self.font_pixels / 6) * self._points
        edge = withStroke(linewidth=width + 1.2 * self._points, foreground=(0, 0, 0, 0.5))
        self.output.ax.patches[-1].set(linewidth=width, path_effects=[edge], joinstyle="miter", snap=False)
        return self.output

    @property
    def _points(self) -> float:
        """Points, matplotlib's unit of fonts and lines, per pixel of the drawing."""
        return 72 / self.output.dpi

    def _draw(
        self, boxes: np.ndarray, numbers: list[int], labels: list[str], rank: np.ndarray | None = None
    ) -> VisImage:
        """Draw all boxes, the largest first, then the labels in the order of ``rank`` or else of the boxes."""
        order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
        for i in order:
            self.draw_box(boxes[i], edge_color=self.colors[numbers[i]])
        taken: list[Rectangle] = []
        for i in order if rank is None else rank:
            self._draw_label(labels[i], boxes[i] * self.output.scale, self.colors[numbers[i]], taken)
        return self.output

    def _draw_label(self, label: str, box: np.ndarray, color: Color, taken: list[Rectangle]) -> None:
        """Put a label at its box (in pixels of the drawing), unless every place for it is taken."""
        font_size = self.font_pixels * self._points / self.output.scale  # draw_text multiplies it by the scale
        self.draw_text(label, (0, 0), font_size=font_size, horizontal_alignment="left")
        text = self.output.ax.texts[-1]
        extent = text.get_window_extent(self.output.canvas.get_renderer())
        size = (extent.width + 2 * LABEL_PAD, extent.height + 2 * LABEL_PAD)
        if (place := self._free_place(box, size, taken)) is None:
            text.remove()
            return
        taken.append(place)
        text.set(position=(np.array(place[:2]) + LABEL_PAD) / self.output.scale, color=_readable_on(color))
        text.set_bbox({"facecolor": color, "edgecolor": "none", "alpha": 0.92, "pad": LABEL_PAD * self._points})

    def _free_place(self, box: np.ndarray, size: tuple[float, float], taken: list[Rectangle]) -> Rectangle | None:
        """The first of the places above, below and inside the box that is free and in the image: x0, y0, x1, y1."""
        (x0, y0, x1, y1), (width, height) = box, size
        limit_x = self.output.width * self.output.scale - width
        limit_y = self.output.height * self.output.scale - height
        for x, y in ((x0, y0 - height), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1), (x0, y0)):
            x = min(max(x, 0), limit_x)
            free = all(x + width <= a or c <= x or y + height <= b or d <= y for a, b, c, d in taken)
            if free and 0 <= y <= limit_y:
                return (x, y, x + width, y + height)
        return None


def draw_detections(
    image: np.ndarray, detections: Instances, classes: Sequence[str], confidence_threshold: float = 0.5, width: int = 0
) -> np.ndarray:
    """The image with the detections whose confidence is at least ``confidence_threshold``.

    Args:
        image: RGB (H, W, 3).
        detections: with pred_boxes (pixels of ``image``), scores and pred_classes.
        width: of the drawing in pixels; 0 takes that of the image, but at least DRAWING_WIDTH.
    """
    kept = detections[detections.scores >= confidence_threshold]
    return BoxVisualizer(image, classes, _scale(image, width)).draw_instance_predictions(kept).get_image()


def draw_ground_truth(image: np.ndarray, record: Mapping, classes: Sequence[str], width: int = 0) -> np.ndarray:
    """The image with the annotations of its record (Detectron2's format); ``width`` as in :func:`draw_detections`."""
    return BoxVisualizer(image, classes, _scale(image, width)).draw_dataset_dict(record).get_image()


def _scale(image: np.ndarray, width: int) -> float:
    return (width or max(DRAWING_WIDTH, image.shape[1])) / image.shape[1]


def _readable_on(color: Color) -> str:
    """Black or white, whichever is readable on the color, by its relative luminance."""
    return "black" if 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2] > 0.5 else "white"
