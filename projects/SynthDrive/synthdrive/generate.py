"""Writes SynthDrive to disk as one VOC devkit per weather domain. An interrupted run can be continued."""

import json
import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from soma_det.utils.files import write_bytes
from soma_det.utils.machine import count_cores
from soma_det.weather import apply_weather
from synthdrive.scene import Scene, render_scene
from synthdrive.voc import annotation_xml, write_list
from synthdrive.workers import init_worker

logger = logging.getLogger(__name__)

DOMAINS = ("daytime_clear", "night_sunny", "dusk_rainy", "night_rainy", "daytime_foggy")
SPLITS = ("train", "test")
VERSION = 1  # to be raised, and digests.json recorded, whenever the same seed gives other images
MANIFEST = "synthdrive.json"  # settings of a finished set
_STARTED = ".synthdrive.started.json"  # settings of a set that is being written
_QUALITY = 92


class Job(NamedTuple):
    """One image: its folder and everything that determines it."""

    root: str
    seed: int
    domain: str
    split: str
    index: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """File name without ending."""
        return f"{self.domain}_{self.split}_{self.index:06d}"

    @property
    def image(self) -> Path:
        """The image's file."""
        return Path(self.root, self.domain, "VOC2007", "JPEGImages", f"{self.name}.jpg")

    @property
    def annotation(self) -> Path:
        """The boxes' file."""
        return Path(self.root, self.domain, "VOC2007", "Annotations", f"{self.name}.xml")


def make_image(
    seed: int, domain: str, split: str, index: int, height: int = 270, width: int = 480
) -> tuple[np.ndarray, Scene]:
    """One image (H, W, 3) uint8 RGB in its weather, and its scene; a pure function of the arguments."""
    entropy = [seed, DOMAINS.index(domain), SPLITS.index(split), index]
    scene = render_scene(entropy, height, width, sun=domain == "daytime_clear")
    rng = np.random.default_rng([*entropy, 1])
    return apply_weather(scene.image, scene.depth, domain, rng, scene.lights, scene.road, scene.emission), scene


def generate(
    root: str | Path,
    counts: Mapping[str, tuple[int, int]],
    seed: int = 0,
    height: int = 270,
    width: int = 480,
    workers: int | None = None,
    overwrite: bool = False,
) -> Iterator[int]:
    """Write the set and yield the number of images so far. A complete set yields nothing.

    Args:
        root: folder of the set.
        counts: domain -> number of (training, test) images.
        workers: processes, by default one per core; the written bytes do not depend on it.
        overwrite: whether another SynthDrive in the folder is removed first.

    Raises:
        ValueError: a domain or a count is wrong, or the folder holds other images.
    """
    _check_counts(counts)
    root = Path(root)
    settings = {
        "version": VERSION, "seed": seed, "height": height, "width": width,
        "counts": {domain: list(counts[domain]) for domain in DOMAINS if domain in counts},
    }  # fmt: skip
    if _is_finished(root, settings, overwrite):
        logger.info("%s already holds this SynthDrive.", root)
        return
    jobs = [job for split in jobs_by_split(root, settings).values() for job in split]
    _prepare_folders(root, settings)
    yield from _run(jobs, workers or count_cores())
    for path, names in lists(root, settings).items():
        write_list(path, names)
    write_bytes(root / MANIFEST, _to_json(settings))
    (root / _STARTED).unlink(missing_ok=True)  # another process may have made the same set beside this one


def jobs_by_split(root: Path, settings: dict) -> dict[tuple[str, str], list[Job]]:
    """The images of a set by domain and split; ``settings`` are the content of its MANIFEST."""
    seed, height, width = (settings[name] for name in ("seed", "height", "width"))
    return {
        (domain, split): [Job(str(root), seed, domain, split, index, height, width) for index in range(number)]
        for domain, numbers in settings["counts"].items()
        for split, number in zip(SPLITS, numbers)
        if number
    }


def lists(root: Path, settings: dict) -> dict[Path, list[str]]:
    """The files of image sets, and the names in them."""
    return {
        root / domain / "VOC2007" / "ImageSets" / "Main" / f"{split}.txt": [job.name for job in jobs]
        for (domain, split), jobs in jobs_by_split(root, settings).items()
    }


def _check_counts(counts: Mapping[str, tuple[int, int]]) -> None:
    for domain, numbers in counts.items():
        if domain not in DOMAINS:
            raise ValueError(f"Unknown domain {domain!r}: choose from {', '.join(DOMAINS)}.")
        if len(numbers) != 2 or min(numbers) < 0:
            raise ValueError(f"The counts of {domain} are {numbers}; give two numbers of at least 0, (train, test).")
    if not any(sum(numbers) for numbers in counts.values()):
        raise ValueError("All counts are 0: give at least one domain a count above 0.")


def _is_finished(root: Path, settings: dict, overwrite: bool) -> bool:
    """Whether the folder holds exactly this set. Another set, complete or not, is removed or an error."""
    for record in (root / MANIFEST, root / _STARTED):
        if not record.is_file():
            continue
        found = json.loads(record.read_text())
        if found == settings:
            return record.name == MANIFEST
        if not overwrite:
            raise ValueError(
                f"{root} holds another SynthDrive ({found}), not {settings}: choose another folder, or replace it "
                "with --overwrite."
            )
        for domain in found["counts"]:
            shutil.rmtree(root / domain, ignore_errors=True)
        record.unlink()
    return False


def _prepare_folders(root: Path, settings: dict) -> None:
    foreign = [domain for domain in settings["counts"] if (root / domain).exists()]
    if foreign and not (root / _STARTED).is_file():
        raise ValueError(
            f"{root} holds {', '.join(foreign)}, which SynthDrive did not write: choose another folder. Nothing was "
            "changed."
        )
    write_bytes(root / _STARTED, _to_json(settings))  # first, so that the folders of an interrupted run are recognized
    for domain in settings["counts"]:
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / domain / "VOC2007" / folder).mkdir(parents=True, exist_ok=True)


def _to_json(settings: dict) -> bytes:
    return (json.dumps(settings, indent=2) + "\n").encode()


def _run(jobs: list[Job], workers: int) -> Iterator[int]:
    """Do all jobs and yield the number of finished ones."""
    if workers == 1:
        for done, job in enumerate(jobs, 1):
            _write_image(job)
            yield done
        return
    # Not "fork": forks of a process with threads (OpenCV's, torch's) may hang.
    clean = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(clean)
    if clean == "forkserver":
        context.set_forkserver_preload(["__main__", __name__])  # imports torch once, not in every worker
    with context.Pool(min(workers, len(jobs)), initializer=init_worker) as pool:
        for done, _ in enumerate(pool.imap_unordered(_write_image, jobs, chunksize=4), 1):
            yield done


def _write_image(job: Job) -> None:
    """Write the image, then its annotation: where the annotation exists, both are complete."""
    path = job.image
    if job.annotation.is_file() and path.is_file():
        return
    image, scene = make_image(job.seed, job.domain, job.split, job.index, job.height, job.width)
    encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not encoded:
        raise OSError(f"OpenCV could not encode {path} as JPEG.")
    write_bytes(path, data.tobytes())
    write_bytes(job.annotation, annotation_xml(path.name, job.height, job.width, scene.boxes, scene.labels))
