"""SynthDrive images for pretraining: each scene in one weather, and the same view at three later moments."""

import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pretraining.images import MOMENTS, WEATHER_FOLDER
from soma_det.utils.files import write_bytes
from soma_det.utils.machine import count_cores
from soma_det.weather import apply_weather
from synthdrive.generate import DOMAINS
from synthdrive.scene import render_departures, render_scene
from synthdrive.workers import init_worker

_QUALITY = 92
_APART = (len(DOMAINS), 4)  # SynthDrive's own scenes have their domain and split here, with smaller numbers


def render_moments(seed: int, index: int, height: int = 270, width: int = 480) -> list[np.ndarray]:
    """A scene in weather ``index % 5``, then on a gray day with all, some and no road users: (H, W, 3) uint8 RGB.

    A pure function of the arguments. Whatever the seed, the scene is not in a training or test split of SynthDrive.
    """
    domain = DOMAINS[index % len(DOMAINS)]
    entropy = [seed, *_APART, index]
    gray, fewer, none = render_departures(entropy, height, width, sun=False)
    scene = render_scene(entropy, height, width) if domain == "daytime_clear" else gray
    rng = np.random.default_rng([*entropy, 1])
    seen = apply_weather(scene.image, scene.depth, domain, rng, scene.lights, scene.road, scene.emission)
    return [seen, gray.image, fewer, none]


def render_all(root: str | Path, count: int, seed: int = 0, workers: int | None = None) -> Iterator[int]:
    """Write ``root``/weather and the folders of MOMENTS, with images of the same names; yields how many are done.

    Existing scenes are kept, so the same call again goes on after an interruption.
    """
    if count < 1:
        raise ValueError(f"{count} images cannot be rendered: ask for at least 1.")
    for folder in (WEATHER_FOLDER, *MOMENTS):
        Path(root, folder).mkdir(parents=True, exist_ok=True)
    clean = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(clean)
    with context.Pool(workers or count_cores(), initializer=init_worker) as pool:
        write = partial(_write_scene, str(root), seed)
        yield from (done for done, _ in enumerate(pool.imap_unordered(write, range(count), chunksize=4), 1))


def _write_scene(root: str, seed: int, index: int) -> None:
    """Write the weather image last: where it exists, the moments exist too."""
    name = f"{DOMAINS[index % len(DOMAINS)]}_{seed}_{index:06d}.jpg"
    paths = [Path(root, folder, name) for folder in (WEATHER_FOLDER, *MOMENTS)]
    if all(path.is_file() for path in paths):
        return
    for path, image in reversed(list(zip(paths, render_moments(seed, index)))):
        encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        if not encoded:
            raise OSError(f"OpenCV could not encode {path} as JPEG.")
        write_bytes(path, data.tobytes())
