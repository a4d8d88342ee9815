"""Arranges images in columns with headers. All images are RGB, (H, W, 3), uint8."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.ImageFont import FreeTypeFont

from soma_det.utils.visualizer import class_colors

BACKGROUND, TEXT_COLOR, FAINT_COLOR = (255, 255, 255), (32, 36, 43), (226, 229, 234)


def contact_sheet(
    columns: Mapping[str, Sequence[np.ndarray]], cell_width: int = 480, legend: Sequence[str] = ()
) -> np.ndarray:
    """Arrange images in columns with headers, for example one column per weather.

    Args:
        columns: header -> images from top to bottom; columns may differ in length. Cells have the median shape of the
            images; others are scaled to fit in.
        cell_width: pixels.
        legend: class names, in the order of the class numbers, to explain the colors below the images.

    Raises:
        ValueError: there is no image at all.
    """
    if not any(len(images) for images in columns.values()):
        raise ValueError(f"There is no image to put on the contact sheet (columns: {', '.join(columns) or 'none'}).")
    ratio = np.median([image.shape[0] / image.shape[1] for images in columns.values() for image in images])
    cell = (cell_width, round(cell_width * ratio))
    gap, font = max(4, cell_width // 60), _font(_header_size(cell_width))
    line = 2 * font.size
    height = line + max(map(len, columns.values())) * (cell[1] + gap) + (line if legend else 0)
    sheet = Image.new("RGB", (gap + len(columns) * (cell[0] + gap), height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for c, (header, images) in enumerate(columns.items()):
        left = gap + c * (cell[0] + gap)
        header_font = _fitting_font(draw, header, cell_width)
        draw.text((left + cell[0] / 2, line / 2), header, TEXT_COLOR, header_font, anchor="mm")
        for r, image in enumerate(images):
            fitted = ImageOps.pad(Image.fromarray(image), cell, Image.Resampling.LANCZOS, FAINT_COLOR)
            sheet.paste(fitted, (left, line + r * (cell[1] + gap)))
    _draw_legend(draw, legend, font, sheet.width / 2, height - (line + gap) / 2)
    return np.array(sheet)


@functools.lru_cache
def _font(size: int, bold: bool = False) -> FreeTypeFont:
    # matplotlib brings this font along, so that drawings look the same everywhere.
    path = findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
    return ImageFont.truetype(path, max(9, size))


def _header_size(cell_width: int) -> int:
    """Height of header letters in pixels."""
    return int(np.clip(cell_width / 24, 11, 24))


def _fitting_font(draw: ImageDraw.ImageDraw, text: str, width: int) -> FreeTypeFont:
    """The largest of the header fonts in which the text is not wider than ``width`` pixels."""
    size = _header_size(width)
    while size > 9 and draw.textlength(text, _font(size, bold=True)) > width:
        size -= 1
    return _font(size, bold=True)


def _draw_legend(draw: ImageDraw.ImageDraw, classes: Sequence[str], font: FreeTypeFont, x: float, y: float) -> None:
    """``x`` and ``y`` are the legend's middle."""
    swatch, space = font.size, 1.6 * font.size
    widths = [1.5 * swatch + draw.textlength(name, font) for name in classes]
    x -= (sum(widths) + space * (len(classes) - 1)) / 2
    for name, color, width in zip(classes, class_colors(len(classes)), widths):
        fill = tuple(round(255 * c) for c in color)
        draw.rounded_rectangle((x, y - swatch / 2, x + swatch, y + swatch / 2), swatch / 5, fill)
        draw.text((x + 1.5 * swatch, y), name, TEXT_COLOR, font, anchor="lm")
        x += width + space
