"""Readers of the field's data sets, each to one COCO json; what stands in a source's folder is never written to.

A reader takes the source's root folder, a :class:`~soma_det.data.convert.records.Report` and the options of its entry
in :mod:`soma_det.data.datasets.catalog`, and yields an :class:`~soma_det.data.convert.records.Image` at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from soma_det.data.convert.bbgt import read_exdark
from soma_det.data.convert.cityscapes import read_cityscapes
from soma_det.data.convert.coco import read_coco
from soma_det.data.convert.records import Image, Report
from soma_det.data.convert.scalabel import read_scalabel
from soma_det.data.convert.voc import read_dawn, read_voc

__all__ = ["READERS", "Report", "read"]

READERS: dict[str, Callable[..., Iterator[Image]]] = {
    "cityscapes": read_cityscapes,
    "scalabel": read_scalabel,
    "coco": read_coco,
    "voc": read_voc,
    "dawn": read_dawn,
    "exdark": read_exdark,
}


def read(reader: str, root: Path, report: Report, options: Mapping) -> Iterator[Image]:
    """The images of a source in the reader's format; a FileNotFoundError if the root does not exist."""
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {root.absolute()} does not exist: set --root, see datasets/README.md.")
    return READERS[reader](root, report, **options)
