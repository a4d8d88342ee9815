"""Draws detections and ground truth with Detectron2's Visualizer, alone, side by side, and on contact sheets.

All images that come in or go out are RGB, (H, W, 3), uint8.
"""

import colorsys
import functools
import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer, VisImage
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.patheffects import withStroke
from PIL import Image, ImageDraw, ImageFont

from soma_det.data.datasets.voc_xml import UNREADABLE_IMAGE
from soma_det.evaluation.detections import box_xyxy
from soma_det.evaluation.coco_evaluation import dataset_category_ids

Color = tuple[float, float, float]  # RGB, 0 to 1
Predict = Callable[[dict, np.ndarray], Instances]  # (record of the data set, RGB image) -> detections

# Okabe and Ito's palette, which people with color vision deficiencies can tell apart ("Color Universal Design", 2008),
# its blue lightened so that it shows on night images.
PALETTE = ("#e69f00", "#2bc48a", "#56b4e9", "#e08fc0", "#f0e442", "#ff6a2b", "#5b7cff")
BACKGROUND, TEXT_COLOR, FAINT_COLOR = (255, 255, 255), (32, 36, 43), (226, 229, 234)
DRAWING_WIDTH = 960  # pixels; smaller images are enlarged to it, so that labels have room
LABEL_PAD = 2.0  # pixels around the text of a label


def class_colors(num_classes: int) -> list[Color]:
    """One fixed color per class; beyond the palette's seven, hues spread by the golden ratio."""
    colors = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in PALETTE[:num_classes]]
    return colors + [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.65, 0.95) for i in range(len(PALETTE), num_classes)]


class BoxVisualizer(Visualizer):
    """Detectron2's Visualizer with one fixed color per class, thin outlined boxes and labels that do not overlap."""

    def __init__(self, image: np.ndarray, classes: Sequence[str], scale: float = 1.0):
        """
        Args:
            image: RGB (H, W, 3).
            classes: names in the order of the class numbers.
            scale: size of the drawing relative to the image.
        """
        super().__init__(image, scale=scale)
        self.classes = classes
        self.colors = class_colors(len(classes))
        width, height = self.output.width * scale, self.output.height * scale
        self.font_pixels = float(np.clip(np.sqrt(width * height) / 55, 9, 22))
        if scale != 1:
            self.output.ax.images[0].set_interpolation("lanczos")  # VisImage's "nearest" shows blocks

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draw detections, labeled with class and score; where labels are in each other's way, the surest one stays."""
        scores = predictions.scores.tolist()
        numbers = predictions.pred_classes.tolist()
        labels = [f"{self.classes[c]} {100 * s:.0f}%" for c, s in zip(numbers, scores)]
        return self._draw(predictions.pred_boxes.tensor.cpu().numpy(), numbers, labels, np.argsort(scores)[::-1])

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the ground truth of a record in Detectron2's format, labeled with the class."""
        annotations = dic.get("annotations", [])
        boxes = np.array([box_xyxy(a) for a in annotations]).reshape(-1, 4)
        numbers = [a["category_id"] for a in annotations]
        labels = [self.classes[a["category_id"]] + (" (crowd)" if a.get("iscrowd") else "") for a in annotations]
        return self._draw(boxes, numbers, labels, np.argsort(-_areas(boxes), kind="stable"))

    def draw_box(self, box_coord, alpha=1.0, edge_color="g", line_style="-") -> VisImage:
        """As in Visualizer, but thin, opaque, and set off from any background by a dark edge."""
        super().draw_box(box_coord, alpha, edge_color, line_style)
        width = max(1.6, self.font_pixels / 6) * self._points
        edge = withStroke(linewidth=width + 1.2 * self._points, foreground=(0, 0, 0, 0.5))
        self.output.ax.patches[-1].set(linewidth=width, path_effects=[edge], joinstyle="miter", snap=False)
        return self.output

    @property
    def _points(self) -> float:
        """Points, matplotlib's unit of fonts and lines, per pixel of the drawing."""
        return 72 / self.output.dpi

    def _draw(self, boxes: np.ndarray, numbers: list[int], labels: list[str], rank: Sequence[int]) -> VisImage:
        """Draw all boxes, the largest first, then the labels in the order of ``rank``."""
        for i in np.argsort(-_areas(boxes), kind="stable"):
            self.draw_box(boxes[i], edge_color=self.colors[numbers[i]])
        taken: list[tuple] = []
        for i in rank:
            self._draw_label(labels[i], boxes[i] * self.output.scale, self.colors[numbers[i]], taken)
        return self.output

    def _draw_label(self, label: str, box: np.ndarray, color: Color, taken: list[tuple]) -> None:
        """Put a label at its box (in pixels of the drawing), unless every place for it is taken."""
        font_size = self.font_pixels * self._points / self.output.scale  # draw_text multiplies it by the scale
        self.draw_text(label, (0, 0), font_size=font_size, horizontal_alignment="left")
        text = self.output.ax.texts[-1]
        extent = text.get_window_extent(self.output.canvas.get_renderer())
        size = (extent.width + 2 * LABEL_PAD, extent.height + 2 * LABEL_PAD)
        place = self._free_place(box, size, taken)
        if place is None:
            text.remove()
            return
        taken.append(place)
        text.set(position=(np.array(place[:2]) + LABEL_PAD) / self.output.scale, color=_readable_on(color))
        text.set_bbox({"facecolor": color, "edgecolor": "none", "alpha": 0.92, "pad": LABEL_PAD * self._points})

    def _free_place(self, box: np.ndarray, size: tuple[float, float], taken: list[tuple]) -> tuple | None:
        """The first of the places above, below and inside the box that is free and in the image: x0, y0, x1, y1."""
        (x0, y0, x1, y1), (width, height) = box, size
        limit_x = self.output.width * self.output.scale - width
        limit_y = self.output.height * self.output.scale - height
        for x, y in ((x0, y0 - height), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1), (x0, y0)):
            x = min(max(x, 0), limit_x)
            place = (x, y, x + width, y + height)
            if 0 <= y <= limit_y and not any(_overlap(place, other) for other in taken):
                return place
        return None


def draw_detections(
    image: np.ndarray, detections: Instances, classes: Sequence[str], score_threshold: float = 0.5, width: int = 0
) -> np.ndarray:
    """The image with the detections that reach ``score_threshold``.

    Args:
        image: RGB (H, W, 3).
        detections: with pred_boxes (pixels of ``image``), scores and pred_classes.
        width: of the drawing in pixels; 0: that of the image, but at least DRAWING_WIDTH.
    """
    kept = detections[detections.scores >= score_threshold]
    visualizer = BoxVisualizer(image, classes, _scale(image, width))
    return visualizer.draw_instance_predictions(kept).get_image()


def draw_ground_truth(image: np.ndarray, record: dict, classes: Sequence[str], width: int = 0) -> np.ndarray:
    """The image with the annotations of its record (Detectron2's format); ``width`` as in :func:`draw_detections`."""
    return BoxVisualizer(image, classes, _scale(image, width)).draw_dataset_dict(record).get_image()


def draw_split(
    dataset_name: str,
    predict: Predict,
    count: int,
    seed: int = 0,
    score_threshold: float = 0.5,
    width: int = 0,
    ground_truth: bool = True,
) -> Iterator[tuple[dict, np.ndarray]]:
    """Draw some images of a registered split, with the ground truth on the left and the detections on the right.

    Args:
        predict: gives the detections for a record and its RGB image.
        count, seed: which images, see :func:`choose_records`.
        width: of each drawing in pixels, see :func:`draw_detections`.
        ground_truth: False draws the detections only, without a header.

    Yields:
        (record, drawing).
    """
    classes = MetadataCatalog.get(dataset_name).thing_classes
    for record in choose_records(DatasetCatalog.get(dataset_name), count, seed):
        image = read_rgb(record["file_name"])
        detections = predict(record, image)
        drawing = draw_detections(image, detections, classes, score_threshold, width)
        if ground_truth:
            found = int((detections.scores >= score_threshold).sum())
            columns = {
                f"ground truth ({len(record.get('annotations', []))})": [
                    draw_ground_truth(image, record, classes, width)
                ],
                f"detections, score at least {score_threshold:g} ({found})": [drawing],
            }
            drawing = contact_sheet(columns, cell_width=drawing.shape[1])
        yield record, drawing


def contact_sheet(
    columns: Mapping[str, Sequence[np.ndarray]], cell_width: int = 480, legend: Sequence[str] = (), title: str = ""
) -> np.ndarray:
    """Arrange images in columns with headers, for example one column per weather.

    Args:
        columns: header -> RGB images from top to bottom; columns may differ in length. Cells have the median shape
            of the images; others are scaled to fit in.
        cell_width: pixels.
        legend: class names, in the order of the class numbers, to explain the colors below the images.
        title: a line above the headers.

    Returns:
        RGB (H, W, 3).

    Raises:
        ValueError: there is no image at all.
    """
    if not any(len(images) for images in columns.values()):
        raise ValueError(f"There is no image to put on the contact sheet (columns: {', '.join(columns) or 'none'}).")
    ratio = np.median([image.shape[0] / image.shape[1] for images in columns.values() for image in images])
    cell = (cell_width, round(cell_width * ratio))
    gap, font = max(4, cell_width // 60), _font(_header_size(cell_width))
    line = 2 * font.size
    top = (line if title else 0) + line
    size = (
        gap + len(columns) * (cell[0] + gap),
        top + max(map(len, columns.values())) * (cell[1] + gap) + (line if legend else 0),
    )
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((size[0] / 2, 0.6 * line), title, TEXT_COLOR, _font(font.size + 4, bold=True), anchor="mm")
    for c, (header, images) in enumerate(columns.items()):
        left = gap + c * (cell[0] + gap)
        header_font = _fitting_font(draw, header, cell_width)
        draw.text((left + cell[0] / 2, top - line / 2), header, TEXT_COLOR, header_font, anchor="mm")
        for r, image in enumerate(images):
            sheet.paste(_fit(image, cell), (left, top + r * (cell[1] + gap)))
    _draw_legend(draw, legend, font, size[0] / 2, size[1] - (line + gap) / 2)
    return np.array(sheet)


def choose_records(records: Sequence[dict], count: int, seed: int = 0) -> list[dict]:
    """``count`` records, the same for the same seed, in their order; those with several objects come first.

    Records with three or more objects and two or more classes are drawn from before all others.
    """
    order = np.random.default_rng(seed).permutation(len(records))
    chosen = sorted(order, key=lambda i: -_interest(records[i]))[:count]
    return [records[i] for i in sorted(chosen)]


def load_predictions(path: str | os.PathLike, dataset_name: str) -> dict[Hashable, Instances]:
    """Read detections from a file in COCO's results format, as WeatherEvaluator saves it.

    Returns:
        image_id -> detections; images without any are absent. Classes are numbered as in the split.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in another format, or of another data set.
    """
    text = Path(path).read_text(encoding="utf-8")
    numbers = {category_id: number for number, category_id in dataset_category_ids(dataset_name).items()}
    rows: dict[Hashable, list] = {}
    try:
        for entry in json.loads(text):
            box = BoxMode.convert(entry["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            rows.setdefault(entry["image_id"], []).append([*box, entry["score"], numbers.get(entry["category_id"], -1)])
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not in COCO's results format, a list of objects with image_id, category_id, bbox and score "
            f"({type(error).__name__}: {error})."
        ) from error
    if any(row[5] < 0 for image in rows.values() for row in image):
        raise ValueError(f"{path} has category ids that {dataset_name} lacks; was it made on another data set?")
    return {image_id: _instances(np.array(table)) for image_id, table in rows.items()}


def predictions_lookup(path: str | os.PathLike, dataset_name: str) -> Predict:
    """A ``predict`` for :func:`draw_split` that takes the detections from a file; see :func:`load_predictions`.

    Raises:
        ValueError: as there, or the file has detections, but none for an image of the split.
    """
    found = load_predictions(path, dataset_name)
    image_ids = {record["image_id"] for record in DatasetCatalog.get(dataset_name)}
    if found and not image_ids & found.keys():
        raise ValueError(
            f"{path} has no detections for any image of {dataset_name} (its image_id are like "
            f"{next(iter(found))!r}); was it made on another data set?"
        )
    return lambda record, image: found.get(record["image_id"], _instances(np.zeros((0, 6))))


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """The image as RGB (H, W, 3) uint8, turned as its EXIF orientation says.

    Raises:
        OSError: it cannot be read; the message names the file.
    """
    try:
        return np.ascontiguousarray(read_image(os.fspath(path), format="RGB"))
    except UNREADABLE_IMAGE as error:
        raise OSError(f"Cannot read the image {path}: {error}") from error


def _instances(table: np.ndarray) -> Instances:
    """Detections from rows x0, y0, x1, y1, score, class number."""
    # Instances wants to know the image's size, which a results file does not tell and drawing does not use.
    result = Instances((0, 0))
    result.pred_boxes = Boxes(torch.as_tensor(table[:, :4], dtype=torch.float32))
    result.scores = torch.as_tensor(table[:, 4], dtype=torch.float32)
    result.pred_classes = torch.as_tensor(table[:, 5], dtype=torch.int64)
    return result


def _interest(record: dict) -> int:
    numbers = [a["category_id"] for a in record.get("annotations", ())]
    return min(len(numbers), 3) + min(len(set(numbers)), 2)


def _scale(image: np.ndarray, width: int) -> float:
    return (width or max(DRAWING_WIDTH, image.shape[1])) / image.shape[1]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _readable_on(color: Color) -> str:
    """Black or white, whichever is readable on the color, by its relative luminance."""
    return "black" if 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2] > 0.5 else "white"


def _fit(image: np.ndarray, cell: tuple[int, int]) -> Image.Image:
    """The image scaled to fit into a cell (width, height), the rest of which is filled up."""
    height, width = image.shape[:2]
    if (width, height) == cell:
        return Image.fromarray(image)
    scale = min(cell[0] / width, cell[1] / height)
    scaled = Image.fromarray(image).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.LANCZOS
    )
    filled = Image.new("RGB", cell, FAINT_COLOR)
    filled.paste(scaled, ((cell[0] - scaled.width) // 2, (cell[1] - scaled.height) // 2))
    return filled


@functools.lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib brings this font along, so that drawings look the same everywhere.
    path = findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
    return ImageFont.truetype(path, max(9, size))


def _header_size(cell_width: int) -> int:
    """Height of header letters in pixels."""
    return int(np.clip(cell_width / 24, 11, 24))


def _fitting_font(draw: ImageDraw.ImageDraw, text: str, width: int) -> ImageFont.FreeTypeFont:
    """The largest of the header fonts in which the text is not wider than ``width`` pixels."""
    size = _header_size(width)
    while size > 9 and draw.textlength(text, _font(size, bold=True)) > width:
        size -= 1
    return _font(size, bold=True)


def _draw_legend(
    draw: ImageDraw.ImageDraw, classes: Sequence[str], font: ImageFont.FreeTypeFont, center: float, y: float
) -> None:
    swatch, space = font.size, 1.6 * font.size
    widths = [1.5 * swatch + draw.textlength(name, font) for name in classes]
    x = center - (sum(widths) + space * (len(classes) - 1)) / 2
    for name, color, width in zip(classes, class_colors(len(classes)), widths):
        fill = tuple(round(255 * c) for c in color)
        draw.rounded_rectangle((x, y - swatch / 2, x + swatch, y + swatch / 2), swatch / 5, fill)
        draw.text((x + 1.5 * swatch, y), name, TEXT_COLOR, font, anchor="lm")
        x += width + space
