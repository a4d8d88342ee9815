"""What readers yield, and what they report."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from soma_det.utils.files import leaves_folder
from soma_det.utils.images import UnreadableImageError, image_size


@dataclass(frozen=True)
class Box:
    """An object: its class as the source names it, and its box in pixels, 0-based, with an exclusive end.

    A crowd is neither a hit nor a miss: groups, and objects that the source says to ignore.
    """

    name: str
    xyxy: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class Image:
    """An image, also one without boxes. ``file_name`` is relative to the root, with slashes; the size is in pixels."""

    file_name: str
    width: int
    height: int
    boxes: list[Box]


@dataclass
class Report:
    """What was not taken over, and why."""

    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason: images
    left_out: Counter = field(default_factory=Counter)  # class: objects
    faults: Counter = field(default_factory=Counter)  # kind: objects, repaired or dropped

    def as_dict(self) -> dict:
        """For the json: of the images skipped for one reason the number and the first ten."""
        skipped = {why: {"images": len(names), "first": names[:10]} for why, names in sorted(self.skipped.items())}
        return {
            "skipped": skipped,
            "left_out": dict(sorted(self.left_out.items())),
            "faults": {kind: count for kind, count in sorted(self.faults.items()) if count},
        }


def measure(root: Path, file_name: str, report: Report) -> tuple[int, int] | None:
    """Width and height of an image, pixels; None, and noted, if it is missing, unreadable or not below the root."""
    if leaves_folder(file_name):
        report.skipped["with a path that leaves the folder of the data set"].append(file_name)
        return None
    if not (root / file_name).is_file():
        report.skipped["without an image"].append(file_name)
        return None
    try:
        return image_size(root / file_name)
    except UnreadableImageError:
        report.skipped["with an unreadable image"].append(file_name)
        return None


def find(root: Path, *candidates: str) -> Path:
    """The first of these files or folders below the root that exists.

    Raises:
        FileNotFoundError: none does; the message names them.
    """
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise FileNotFoundError(
        f"{root.absolute()} has no {' and no '.join(candidates)}. Set --root to the folder above, and unpack all "
        "archives that datasets/README.md names."
    )
