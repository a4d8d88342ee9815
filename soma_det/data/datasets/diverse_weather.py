"""Loads data sets in the layout of Diverse Weather: one Pascal VOC devkit for each weather domain.

    <root>/<domain>/VOC2007/{Annotations/<id>.xml, ImageSets/Main/<split>.txt, JPEGImages/<id>.jpg}

Diverse Weather: Wu and Deng, "Single-Domain Generalized Object Detection in Urban Scene via Cyclic-Disentangled
Self-Distillation", CVPR 2022, https://github.com/AmingWu/Single-DGOD. Nothing is ever written below <root>.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.structures import BoxMode
from detectron2.utils import comm
from tqdm import tqdm

from soma_det.data.datasets import voc_xml
from soma_det.utils.images import UnreadableImageError, image_size

logger = logging.getLogger(__name__)

DEVKIT = "VOC2007"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_SKIPPED_SHARE = 0.01  # of the listed images; above it the copy is taken for incomplete
REMEDY = "Set DATASETS.WEATHER.ROOT, or DETECTRON2_DATASETS to the folder above diverseWeather: see datasets/README.md."


def load_voc_domain(root: str | Path, domain: str, split: str, classes: Sequence[str]) -> list[dict]:
    """Load one split of one weather domain as Detectron2 standard dicts.

    Args:
        domain: a domain's name; case, hyphens, underscores and spaces of the folder's name do not matter.
        split: a list in ``ImageSets/Main``, without ".txt".
        classes: class names in the order of their category ids; case does not matter.

    Returns:
        a dict for each usable image: file_name, image_id (the file's stem), height, width (pixels, after EXIF
        orientation), annotations (bbox in BoxMode.XYXY_ABS, category_id). What was repaired, left out (also objects of
        other classes) or skipped is logged in one line.

    Raises:
        FileNotFoundError: the root, the domain's folder or the list does not exist.
        OSError: more than 1 percent of the listed images had to be skipped.
        ValueError: the list is empty, or no object is of a known class.
    """
    list_file = find_list(root, domain, split)
    listed = [line.strip() for line in list_file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not listed:
        raise ValueError(f"The list {list_file} names no images. {REMEDY}")
    ids = list(dict.fromkeys(listed))  # evaluators look ground truth up by id, so each once
    reader = _DevkitReader(list_file.parents[2], classes)
    reader.faults["repeated list entries"] += len(listed) - len(ids)
    name = f"{domain}/{split} in {root}"
    logger.info(f"Reading {len(ids)} annotation files of {name} ...")
    hide = None if comm.is_main_process() else True  # None: where stderr is not a terminal
    records = []
    for image_id in tqdm(ids, desc=f"{domain}/{split}", unit="file", delay=3, disable=hide):
        record = reader.read(image_id)
        if isinstance(record, dict):
            records.append(record)
        else:
            reader.skipped[record].append(image_id)
    reader.check(name, len(ids), classes)
    reader.log(f"{name}: {len(records)} images")
    return records


def find_list(root: str | Path, domain: str, split: str) -> Path:
    """The file that lists the images of a split; a FileNotFoundError names what is missing and what is there."""
    main = find_domain_folder(root, domain) / DEVKIT / "ImageSets" / "Main"
    path = main / f"{split}.txt"
    if not path.is_file():
        there = sorted(entry.name for entry in main.glob("*.txt")) if main.is_dir() else "no such folder"
        raise FileNotFoundError(f"Domain {domain!r} has no list {path}; in {main}: {there}. {REMEDY}")
    return path


def find_domain_folder(root: str | Path, domain: str) -> Path:
    """The folder of a domain below ``root``, e.g. Night-Sunny for night_sunny.

    Raises a FileNotFoundError if there is none, and a ValueError if several could be meant.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"The data root {root.absolute()} does not exist. {REMEDY}")
    if (root / domain).is_dir():
        return root / domain
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    matches = [name for name in folders if _letters(name) == _letters(domain)]
    if len(matches) > 1:
        raise ValueError(f"Domain {domain!r} could be any of {matches} in {root}: rename the right one to {domain!r}.")
    if not matches:
        raise FileNotFoundError(f"There is no folder for domain {domain!r} in {root}, only {folders}. {REMEDY}")
    return root / matches[0]


class _DevkitReader:
    """Reads images of one devkit by id, and counts what it finds, repairs and leaves out."""

    def __init__(self, devkit: Path, classes: Sequence[str]):
        self.annotations, self.images = devkit / "Annotations", devkit / "JPEGImages"
        self.files = image_files(self.images)  # one listing instead of a look-up for each image and suffix
        self.classes = {name.casefold(): (index, name) for index, name in enumerate(classes)}
        self.boxes: Counter = Counter()  # class name: boxes kept
        self.unknown: Counter = Counter()  # class name: objects left out
        self.faults: Counter = Counter()  # kind: objects or list entries
        self.skipped: dict[str, list[str]] = defaultdict(list)  # kind: image ids

    def read(self, image_id: str) -> dict | str:
        """The record of an image, or why it has to be skipped."""
        if image_id not in self.files:
            return "without an image"
        path = self.images / self.files[image_id]
        try:
            width, height = image_size(path)
        except UnreadableImageError:
            return "with an unreadable image"
        try:
            objects = voc_xml.read_objects(self.annotations / f"{image_id}.xml", self.faults)
        except voc_xml.BrokenAnnotationError:
            return "with a broken annotation file"
        except OSError:
            return "without a readable annotation file"
        annotations = list(self._annotations(objects, width, height))
        return dict(file_name=str(path), image_id=image_id, height=height, width=width, annotations=annotations)

    def check(self, name: str, listed: int, classes: Sequence[str]) -> None:
        """Raise if too many of the listed images were skipped or no box is left; see :func:`load_voc_domain`."""
        count = sum(map(len, self.skipped.values()))
        if count > MAX_SKIPPED_SHARE * listed:
            raise OSError(
                f"{count} of the {listed} images listed for {name} cannot be used, more than {MAX_SKIPPED_SHARE:.0%}: "
                f"{self._skipped_words()}. Complete the copy, or shorten the list."
            )
        if not self.boxes:
            raise ValueError(
                f"No object of {name} is of the classes {list(classes)}. Classes found: "
                f"{_counts(self.unknown) or 'none'}. Set DATASETS.WEATHER.CLASSES to the names in the annotation files."
            )

    def log(self, head: str) -> None:
        """Log all counts in one line, as a warning if images were skipped or classes left out."""
        parts = {
            f"{head}, {self.boxes.total()} boxes": f"({_counts(self.boxes)})",
            f"SKIPPED {sum(map(len, self.skipped.values()))} images:": self._skipped_words(),
            "left out, not in DATASETS.WEATHER.CLASSES:": _counts(self.unknown),
            "repaired or dropped:": _counts(self.faults),
        }
        line = "; ".join(f"{what} {counts}" for what, counts in parts.items() if counts)
        logger.log(logging.WARNING if self.skipped or self.unknown else logging.INFO, line)

    def _annotations(self, objects: list[tuple[str, voc_xml.Box]], width: int, height: int) -> Iterable[dict]:
        for written_name, written_box in objects:
            category_id, name = self.classes.get(written_name.casefold(), (None, written_name))
            if category_id is None:
                self.unknown[name] += 1
            elif box := voc_xml.to_detectron2_box(written_box, width, height, self.faults):
                self.boxes[name] += 1
                yield dict(bbox=box, bbox_mode=BoxMode.XYXY_ABS, category_id=category_id)

    def _skipped_words(self) -> str:
        words = {kind: ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "") for kind, ids in self.skipped.items()}
        return ", ".join(f"{len(self.skipped[kind])} {kind} ({words[kind]})" for kind in sorted(words))


def image_files(folder: Path) -> dict[str, str]:
    """File names by stem; where several images share a stem, the suffix that comes first in IMAGE_SUFFIXES wins."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of images {folder} does not exist. {REMEDY}")
    names = sorted(os.listdir(folder))
    files: dict[str, str] = {}
    for suffix in reversed(IMAGE_SUFFIXES):  # the preferred one comes last and wins
        files.update((os.path.splitext(name)[0], name) for name in names if name.lower().endswith(suffix))
    return files


def _letters(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()


def _counts(counter: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common() if count)
