"""What is known of a data set: its source, terms, classes, one published figure, and how it is prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """A data set as it is downloaded."""

    title: str
    homepage: str
    terms: str  # as far as they are known; the homepage counts
    root: str  # what --root usually is


@dataclass(frozen=True)
class Published:
    """A figure that others report: what a set-up that is right comes near to with the same detector."""

    score: str
    detector: str
    split: str
    source: str
    metric: str = "AP50"


@dataclass(frozen=True)
class DataSet:
    """A split by its name. ``reader`` is of READERS in soma_det.data.convert; "" is Diverse Weather's own loader."""

    name: str
    source: Source
    reader: str
    classes: tuple[str, ...]
    domain: str
    options: Mapping = field(default_factory=dict)  # of the reader
    published: Published | None = None  # None: no figure was found that says its split and metric
    images: int | None = None  # published number, where known
    boxes: Mapping[str, int] = field(default_factory=dict)  # published number by class, where known
    commonly_cited: bool = False  # these numbers are, and were not read at their source

    @property
    def command(self) -> str:
        """The command that prepares it."""
        return f"python tools/prepare_data.py {self.name} --root {self.source.root}"


CITYSCAPES = Source(
    "Cityscapes",
    "https://www.cityscapes-dataset.com",
    "registration; non-commercial use (read the site's terms)",
    "/data/cityscapes",
)
BDD = Source(
    "BDD100K",
    "http://bdd-data.berkeley.edu",
    "login; education, research and not-for-profit (UC Regents)",
    "/data/bdd100k",
)
ACDC = Source("ACDC", "https://acdc.vision.ee.ethz.ch", "registration; non-commercial use", "/data/acdc")
DAWN = Source("DAWN", "https://data.mendeley.com/datasets/766ygrbt8y/3", "see the page", "/data/DAWN")
RTTS = Source("RTTS (RESIDE)", "https://sites.google.com/view/reside-dehaze-datasets", "see the page", "/data/RTTS")
EXDARK = Source(
    "ExDark",
    "https://github.com/cs-chan/Exclusively-Dark-Image-Dataset",
    "non-commercial academic use, no redistribution (DATASET_TERMS.md, from 2026-10-01)",
    "/data/exdark",
)
SIM10K = Source("Sim10k", "https://fcav.engin.umich.edu/projects/driving-in-the-matrix", "see the page", "/data/sim10k")
VOC = Source("Pascal VOC", "http://host.robots.ox.ac.uk/pascal/VOC/", "see the page", "/data/VOCdevkit")
COCO = Source("COCO", "https://cocodataset.org", "annotations CC BY 4.0; images under Flickr's terms", "/data/coco")
DIVERSE_WEATHER = Source(
    "Diverse Weather",
    "https://github.com/AmingWu/Single-DGOD",
    "none stated; its images come from BDD100K and Foggy Cityscapes, whose terms hold",
    "/data/diverseWeather",
)
CROSS_DOMAIN = "https://github.com/naoto0804/cross-domain-detection"
CLIPART, WATERCOLOR, COMIC = (
    Source(title, CROSS_DOMAIN, "research only", f"/data/{folder}")
    for title, folder in (("Clipart1k", "clipart"), ("Watercolor2k", "watercolor"), ("Comic2k", "comic"))
)
