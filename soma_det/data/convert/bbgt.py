"""ExDark: a file of bbGt version 3 for each image, and a list that says of which split the image is.

Lines of bbGt: class, left, top, width, height, occluded, visible left, top, width, height, ignore, angle.
"""

from collections.abc import Iterator
from pathlib import Path

from soma_det.data.convert.records import Box, Image, Report, find, measure

SPLITS = {"train": "1", "val": "2", "test": "3"}  # the last column of imageclasslist.txt
IGNORE = 10  # column of a bbGt line


def read_exdark(root: Path, report: Report, *, split: str) -> Iterator[Image]:
    """Read the images of a split. Boxes are taken to count from 0."""
    images, annotations = find(root, "ExDark"), find(root, "ExDark_Annno", "ExDark_Anno")
    listing = find(root, "imageclasslist.txt", "Groundtruth/imageclasslist.txt").read_text(encoding="utf-8-sig")
    rows = [line.split() for line in listing.splitlines()[1:] if line.strip()]
    # File names differ from the list's in the case of their letters.
    files = {path.name.casefold(): path for path in images.glob("*/*")}
    texts = {path.name.casefold(): path for path in annotations.glob("*/*.txt")}
    for listed in (row[0] for row in rows if row[-1] == SPLITS[split]):
        image, text = files.get(listed.casefold()), texts.get(f"{listed.casefold()}.txt")
        if image is None or text is None:
            report.skipped["without an image" if image is None else "without an annotation file"].append(listed)
            continue
        name = image.relative_to(root).as_posix()
        if size := measure(root, name, report):
            yield Image(name, *size, list(_boxes(text)))


def _boxes(path: Path) -> Iterator[Box]:
    """The objects of a bbGt file, whose first line is a header."""
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split()
        if not words or words[0].startswith("%"):
            continue
        try:
            left, top, width, height = map(float, words[1:5])
        except ValueError as error:
            raise ValueError(f"{path} is not a bbGt file of version 3: its line {line!r}.") from error
        yield Box(words[0], (left, top, left + width, top + height), len(words) > IGNORE and words[IGNORE] != "0")
