"""Class lists by name, and the words by which data sets mean the same class."""

from collections.abc import Sequence

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from soma_det.config.defaults import CLASSES as DIVERSE_WEATHER

CITYSCAPES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CLASS_LISTS: dict[str, tuple[str, ...]] = {
    "diverse_weather": DIVERSE_WEATHER,
    "cityscapes": CITYSCAPES,
    "bdd100k": ("pedestrian", *CITYSCAPES[1:], "traffic light", "traffic sign"),
    "car": ("car",),
    "voc": VOC,
    "coco": tuple(category["name"] for category in COCO_CATEGORIES if category["isthing"]),
    "six": ("bicycle", "bird", "car", "cat", "dog", "person"),  # of Watercolor2k and Comic2k
    "rtts": ("person", "bicycle", "car", "bus", "motorbike"),
    "exdark": (
        *("bicycle", "boat", "bottle", "bus", "car", "cat"),
        *("chair", "cup", "dog", "motorbike", "people", "table"),
    ),
}
SYNONYMS = (
    {"person", "pedestrian", "people"},
    {"bicycle", "bike"},
    {"motorcycle", "motorbike", "motor"},
    {"table", "diningtable", "dining table"},
    {"aeroplane", "airplane"},
    {"sofa", "couch"},
    {"tvmonitor", "tv"},
    {"pottedplant", "potted plant"},
)


def choose_classes(words: str) -> tuple[str, ...]:
    """The classes of a list's name ("cityscapes") or of names with commas ("car,bus").

    Raises:
        ValueError: there is no such list, or a class occurs twice.
    """
    classes = CLASS_LISTS.get(words) or tuple(word.strip() for word in words.split(","))
    folded = [name.casefold() for name in classes]
    if not all(folded) or len(set(folded)) < len(folded):
        raise ValueError(f"--classes is {words!r}: give different names with commas between, or {list(CLASS_LISTS)}.")
    return classes


def class_numbers(classes: Sequence[str]) -> dict[str, int]:
    """Class number by name in small letters, also by names of the same meaning; a class's own name counts more."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(classes):
        for same in SYNONYMS:
            if name.casefold() in same:
                numbers |= dict.fromkeys(same, number)
    return numbers | {name.casefold(): number for number, name in enumerate(classes)}
