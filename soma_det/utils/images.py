"""Reads images from anywhere: every consumer gets the same 8-bit pixels, or the same error."""

import os

import numpy as np
from PIL import ExifTags, Image

Transpose = Image.Transpose
# By EXIF orientation; 1, and what is not listed, leaves the image as it is.
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
QUARTERS = (5, 6, 7, 8)  # swap width and height
MOST_PIXELS = 178_956_970  # of Pillow, which takes what is larger for a decompression bomb
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImageError(OSError):
    """An image file that is missing, cut short, broken, or of a kind that has no 8-bit colors; the message names it."""


def read_image(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """The image (H, W, 3) uint8 in RGB or BGR, turned as its EXIF orientation says; see :func:`to_rgb`.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    try:
        with _open(path) as image:
            pixels = to_rgb(image)
    except Exception as error:  # of a broken file Pillow's readers raise almost anything
        raise UnreadableImageError(f"Cannot read the image {os.fspath(path)}: {error}") from error
    return pixels if image_format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height, pixels, of the image as :func:`read_image` returns it, from the file's header.

    Raises:
        UnreadableImageError: it is not an image, or of a kind that read_image refuses.
    """
    try:
        with _open(path) as image:
            _check_kind(image)
            turned, (width, height) = _orientation(image) in QUARTERS, image.size
    except Exception as error:  # as in read_image
        raise UnreadableImageError(f"Cannot read the image {os.fspath(path)}: {error}") from error
    return (height, width) if turned else (width, height)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL image as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Gray becomes three equal channels; alpha is left out; CMYK is converted without a color profile; of 16 bits the
    upper 8 are taken, as Pillow does for 16-bit RGB; of several frames the first counts.

    Raises:
        ValueError: 32-bit integers or floats, whose white is not known.
    """
    _check_kind(image)
    turn = TURNS.get(_orientation(image))
    if image.mode in (*SIXTEEN_BITS, "I"):
        # Pillow's own conversion cuts at 255, which leaves an all but white image.
        gray = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(gray, 0, 65535) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn))


def _open(path: str | os.PathLike) -> Image.Image:
    if not os.path.isfile(path):  # a named pipe would be waited for
        raise FileNotFoundError("there is no such file")
    return Image.open(path)


def _check_kind(image: Image.Image) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # PNG's 16 bits, in earlier versions
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, whose white is not known: convert it to 8 bits.")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF counts as none: Pillow raises almost anything here
        return 1
