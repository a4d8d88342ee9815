"""Write SynthDrive to disk as one VOC devkit per weather domain; interrupted runs go on where they stopped."""

import json
import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from synthdrive.scene import Scene, render_scene
from synthdrive.voc import annotation_xml, write_list
from soma_det.data.transforms.weather import apply_weather
from soma_det.utils.files import write_bytes
from soma_det.utils.machine import count_cores, init_worker

logger = logging.getLogger(__name__)

DOMAINS = ("daytime_clear", "night_sunny", "dusk_rainy", "night_rainy", "daytime_foggy")
SPLITS = ("train", "test")
VERSION = 1  # raise it whenever the same seed gives other images
MANIFEST = "synthdrive.json"  # settings of a finished set
_STARTED = ".synthdrive.started.json"  # settings of a set that is being written
_QUALITY = 92


class Job(NamedTuple):
    """One image: where it goes and everything that it is a function of."""

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
    """Write the set, yielding how many images of it are there; yields nothing where it was finished before.

    counts: numbers of (training, test) images per domain. workers: processes, all cores by default; the bytes written do not
    depend on it. A folder that holds another SynthDrive is an error unless `overwrite`, which removes that one first.
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
    jobs = [
        Job(str(root), seed, domain, split, index, height, width)
        for domain, numbers in settings["counts"].items()
        for split, number in zip(SPLITS, numbers)
        for index in range(number)
    ]
    _prepare_folders(root, settings)
    yield from _run(jobs, workers or count_cores())
    for domain, numbers in settings["counts"].items():
        _write_lists(root, domain, numbers)
    write_bytes(root / MANIFEST, _to_json(settings))
    (root / _STARTED).unlink(missing_ok=True)  # another process may have made the same set beside this one


def _check_counts(counts: Mapping[str, tuple[int, int]]) -> None:
    for domain, numbers in counts.items():
        if domain not in DOMAINS:
            raise ValueError(f"Unknown domain {domain!r}: choose from {', '.join(DOMAINS)}.")
        if len(numbers) != 2 or min(numbers) < 0:
            raise ValueError(f"Counts of {domain} are two numbers of at least 0 (train, test), not {numbers}.")
    if not any(sum(numbers) for numbers in counts.values()):
        raise ValueError("No images were asked for: give at least one domain a count above 0.")


def _is_finished(root: Path, settings: dict, overwrite: bool) -> bool:
    """Whether the folder holds exactly this set; another set is removed or an error. Checks for a half-written one too."""
    for record in (root / MANIFEST, root / _STARTED):
        if not record.is_file():
            continue
        found = json.loads(record.read_text())
        if found == settings:
            return record.name == MANIFEST
        if not overwrite:
            raise ValueError(
                f"{root} holds another SynthDrive ({found}), not {settings}: choose another folder, or overwrite it (--overwrite)."
            )
        for domain in found["counts"]:
            shutil.rmtree(root / domain, ignore_errors=True)
        record.unlink()
    return False


def _prepare_folders(root: Path, settings: dict) -> None:
    foreign = [domain for domain in settings["counts"] if (root / domain).exists()]
    if foreign and not (root / _STARTED).is_file():
        raise ValueError(
            f"{root} holds {', '.join(foreign)}, which is no SynthDrive: choose another folder, nothing there was changed."
        )
    write_bytes(root / _STARTED, _to_json(settings))  # first, so that an interrupted run knows its folders again
    for domain in settings["counts"]:
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / domain / "VOC2007" / folder).mkdir(parents=True, exist_ok=True)


def _to_json(settings: dict) -> bytes:
    return (json.dumps(settings, indent=2) + "\n").encode()


def _run(jobs: list[Job], workers: int) -> Iterator[int]:
    """Do all jobs, yielding how many are done."""
    if workers == 1:
        for done, job in enumerate(jobs, 1):
            _write_image(job)
            yield done
        return
    # Not "fork": a process that has started threads (OpenCV's, torch's) may hang in its forks.
    clean = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(clean)
    if clean == "forkserver":
        context.set_forkserver_preload(["__main__", __name__])  # import torch and the like once, not in every worker
    with context.Pool(min(workers, len(jobs)), initializer=init_worker) as pool:
        for done, _ in enumerate(pool.imap_unordered(_write_image, jobs, chunksize=4), 1):
            yield done


def _write_image(job: Job) -> None:
    """Write the path, then its annotation: whoever finds the annotation knows that both are complete."""
    folder = Path(job.root, job.domain, "VOC2007")
    path, annotation = folder / "JPEGImages" / f"{job.name}.jpg", folder / "Annotations" / f"{job.name}.xml"
    if annotation.is_file() and path.is_file():
        return
    image, scene = make_image(job.seed, job.domain, job.split, job.index, job.height, job.width)
    encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not encoded:
        raise OSError(f"OpenCV could not encode {path} as JPEG.")
    write_bytes(path, data.tobytes())
    write_bytes(annotation, annotation_xml(path.name, job.height, job.width, scene.boxes, scene.labels))


def _write_lists(root: Path, domain: str, numbers: list[int]) -> None:
    for split, number in zip(SPLITS, numbers):
        if number:
            names = [Job(str(root), 0, domain, split, index, 0, 0).name for index in range(number)]
            write_list(root / domain / "VOC2007" / "ImageSets" / "Main" / f"{split}.txt", names)
