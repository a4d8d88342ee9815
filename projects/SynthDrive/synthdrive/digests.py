"""Digests of a set's files: whether another machine, NumPy or OpenCV gives the same bytes, and if not, which differ."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from soma_det.utils.files import write_text
from soma_det.utils.machine import cpu_name
from synthdrive.generate import MANIFEST, Job, jobs_by_split, lists

KINDS = ("annotations", "images", "pixels")  # the bytes of both files, and what OpenCV decodes
MISSING = "-" * 8
_LENGTH = 8  # hex digits of a SHA-256 for each file: against accidents, not against forgers


def record(root: Path, path: Path) -> None:
    """Write the digests of a complete set to a json file."""
    settings = read_settings(root)
    digests = {
        f"{domain}/{split}": {
            kind: "".join(column) for kind, column in zip(KINDS, zip(*map(digests_of, jobs), strict=True), strict=True)
        }
        for (domain, split), jobs in jobs_by_split(root, settings).items()
    }
    write_text(path, json.dumps({"settings": settings, "made_with": made_with(), "digests": digests}, indent=1) + "\n")


def differences(root: Path, path: Path) -> Iterator[str]:
    """Yield a line for each file of a complete set that is not as recorded. Fewer images than recorded may be there.

    Raises:
        ValueError: the record is of other images.
        OSError: the set or the record cannot be read.
    """
    settings, recorded = read_settings(root), json.loads(path.read_text(encoding="utf-8"))
    _check_same(settings, recorded["settings"], path)
    groups = jobs_by_split(root, settings)
    for (domain, split), jobs in groups.items():
        yield from _different_images(jobs, recorded["digests"][f"{domain}/{split}"])
    expected = lists(root, settings)
    for file, names in expected.items():
        if not file.is_file() or file.read_bytes() != "".join(f"{name}\n" for name in names).encode():
            yield f"{file}: the list differs"
    known = {file for jobs in groups.values() for job in jobs for file in (job.image, job.annotation)} | set(expected)
    for domain in settings["counts"]:
        for file in sorted((root / domain).rglob("*")):
            if file.is_file() and file not in known:
                yield f"{file}: not one of the set's files"


def made_with() -> dict[str, str]:
    """What may change bytes: the packages that draw, and the CPU whose instructions they choose from."""
    return {"numpy": np.__version__, "opencv": cv2.__version__, "cpu": cpu_name()}


def read_settings(root: Path) -> dict:
    """The settings of a complete set. Raises an OSError if there is none."""
    return json.loads((root / MANIFEST).read_text(encoding="utf-8"))


def digests_of(job: Job) -> tuple[str, str, str]:
    """Of the annotation's bytes, the image's bytes and its decoded pixels; MISSING where there is nothing."""
    annotation, image = (file.read_bytes() if file.is_file() else None for file in (job.annotation, job.image))
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else None
    decoded = None if pixels is None else repr(pixels.shape).encode() + pixels.tobytes()
    return _digest(annotation), _digest(image), _digest(decoded)


def _digest(content: bytes | None) -> str:
    return MISSING if content is None else hashlib.sha256(content).hexdigest()[:_LENGTH]


def _check_same(settings: dict, recorded: dict, path: Path) -> None:
    for name in ("version", "seed", "height", "width"):
        if settings[name] != recorded[name]:
            raise ValueError(f"{path} is of a set with {name} {recorded[name]}, not {settings[name]}: record your own.")
    for domain, numbers in settings["counts"].items():
        known = recorded["counts"].get(domain, [0, 0])
        if any(number > limit for number, limit in zip(numbers, known, strict=True)):
            raise ValueError(
                f"{path} has digests of {known} training and test images of {domain}, not of {numbers}: "
                "make fewer, or record your own."
            )


def _different_images(jobs: list[Job], recorded: dict[str, str]) -> Iterator[str]:
    columns = [[text[at : at + _LENGTH] for at in range(0, len(text), _LENGTH)] for text in map(recorded.get, KINDS)]
    for job, *expected in zip(jobs, *columns):
        annotation, image, pixels = digests_of(job)
        if annotation != expected[0]:
            yield f"{job.annotation}: {'missing' if annotation == MISSING else 'the annotation differs'}"
        if image == MISSING:
            yield f"{job.image}: missing"
        elif pixels == MISSING:
            yield f"{job.image}: cannot be decoded"
        elif image != expected[1]:
            yield f"{job.image}: {'the file differs, its pixels do not' if pixels == expected[2] else 'pixels differ'}"
        elif pixels != expected[2]:
            yield f"{job.image}: the file is the same, but this OpenCV decodes other pixels"
