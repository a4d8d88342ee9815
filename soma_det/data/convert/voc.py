"""Pascal VOC devkits (VOC, RTTS, Sim10k, Clipart, Watercolor, Comic), and DAWN, VOC's files in other folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from soma_det.data.convert.records import Box, Image, Report, find, measure
from soma_det.data.datasets.diverse_weather import image_files
from soma_det.data.datasets.voc_xml import BrokenAnnotationError, read_flagged_objects, to_detectron2_box


def read_voc(
    root: Path, report: Report, *, devkits: Sequence[tuple[str, str]], ignore_difficult: bool = False
) -> Iterator[Image]:
    """Read lists of one or more devkits.

    Args:
        devkits: (folder below the root, list); the root itself where it has no such folder.
        ignore_difficult: take difficult objects for crowds, as VOC's evaluation leaves them out.
    """
    for folder, split in devkits:
        devkit = root / folder if (root / folder).is_dir() else root
        listing = find(devkit, f"ImageSets/Main/{split}.txt").read_text(encoding="utf-8-sig")
        files = image_files(find(devkit, "JPEGImages"))
        for image_id in dict.fromkeys(line.strip() for line in listing.splitlines() if line.strip()):
            if image_id not in files:  # also what would lead out of the folder
                report.skipped["without an image"].append(f"{folder}/JPEGImages/{image_id}")
                continue
            image = devkit / "JPEGImages" / files[image_id]
            yield from _read(root, image, devkit / "Annotations" / f"{image_id}.xml", report, ignore_difficult)


def read_dawn(root: Path, report: Report, *, folder: str) -> Iterator[Image]:
    """Read one weather of DAWN: every image that has an annotation file."""
    annotations, images = find(root, f"{folder}/{folder}_PASCAL_VOC"), root / folder
    files, stems = image_files(images), sorted(path.stem for path in annotations.glob("*.xml"))
    report.faults["images without an annotation file, left out"] += len(files.keys() - set(stems))
    for stem in stems:
        yield from _read(root, images / files.get(stem, stem), annotations / f"{stem}.xml", report, False)


def _read(root: Path, image: Path, annotation: Path, report: Report, ignore_difficult: bool) -> Iterator[Image]:
    name = image.relative_to(root).as_posix()
    if (size := measure(root, name, report)) is None:
        return
    try:
        objects = read_flagged_objects(annotation, report.faults)
    except BrokenAnnotationError:
        report.skipped["with a broken annotation file"].append(name)
    except OSError:
        report.skipped["without a readable annotation file"].append(name)
    else:
        boxes = []
        for found in objects:
            if box := to_detectron2_box(found.box, *size, report.faults):
                x0, y0, x1, y1 = box
                boxes.append(Box(found.name, (x0, y0, x1, y1), ignore_difficult and found.difficult))
        yield Image(name, *size, boxes)
