"""Images without labels: found in a folder, decoded once, cropped by seed and iteration."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from soma_det.utils.machine import count_cores
from synthdrive.workers import init_worker

logger = logging.getLogger(__name__)

# The folders that pretrain_vit.py --render writes.
WEATHER_FOLDER, MOMENTS = "weather", ("moment0", "moment1", "moment2")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_ORDER, _CROPS = 0, 1  # streams of random numbers
_DECODED_AT_ONCE = 64  # images
_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)  # of a container, on Linux


class Batch(NamedTuple):
    """The crops of one iteration.

    images: (N, H, W, 3) uint8 RGB. places: (N, 2) float32, position of each crop in its image, 0 (top, left) to 1
    (bottom, right). targets: the objective's targets by name, those of all crops concatenated.
    """

    images: Tensor
    places: Tensor
    targets: dict[str, Tensor]


# From a crop (H, W, 3) uint8 RGB and the same crop of its companions to the objective's targets, arrays by name.
Prepare = Callable[[np.ndarray, Sequence[np.ndarray], np.random.Generator], dict[str, np.ndarray]]


def find_images(root: str | Path) -> list[Path]:
    """All images below a folder, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or has no images.
    """
    root = Path(root)
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{root} holds no images ({', '.join(ENDINGS)}): name a folder with images.")
    return found


class ImageStream(Dataset):
    """Batches of random crops; batch ``i`` is a function of the images, the seed and ``i`` alone.

    Decoded images stay in memory, up to ``memory`` bytes, and worker processes share them. The others are decoded at
    every use.

    Args:
        root: folder of images, searched recursively.
        prepare: makes the objective's targets of a crop, see Prepare; may run in other processes.
        companions: folders with images of the same names, which are cropped like their image and passed to ``prepare``.
        batch: crops in a batch.
        crop_size: (H, W), pixels.
        scales: range of the random scale before cropping, uniform in its logarithm.
        longest: pixels; larger images are reduced when they are decoded.
        memory: bytes of decoded images to keep; by default half of the machine's memory, at most 8 GiB.

    Raises:
        FileNotFoundError: a folder has no images, or a companion is missing.
    """

    def __init__(
        self,
        root: str | Path,
        prepare: Prepare,
        companions: Sequence[str | Path] = (),
        *,
        batch: int = 64,
        crop_size: Sequence[int] = (192, 320),
        scales: Sequence[float] = (0.75, 1.5),
        seed: int = 0,
        longest: int = 640,
        memory: int | None = None,
    ):
        paths = find_images(root)
        self.paths = [[path, *(_companion(path, Path(root), folder) for folder in companions)] for path in paths]
        self.prepare, self.batch_size, self.seed = prepare, batch, seed
        self.crop_size, self.scales = tuple(crop_size), tuple(scales)
        self.longest, self.room = longest, min(8 << 30, _memory_bytes() // 2) if memory is None else memory
        self._kept: dict[Path, np.ndarray] = {}
        logger.info(
            "%d images below %s%s", len(paths), root, f", with {len(companions)} others each" * bool(companions)
        )

    def __getitem__(self, iteration: int) -> Batch:
        """The crops of one iteration."""
        rng = np.random.default_rng([self.seed, _CROPS, iteration])
        crops = [self._crop(self.paths[index], rng) for index in self._indices(iteration)]
        images, places, targets = zip(*crops)
        joined = {name: torch.from_numpy(np.concatenate([t[name] for t in targets])) for name in targets[0]}
        return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(places)), joined)

    def batches(self, start: int, stop: int, workers: int = 0, pinned: bool = False) -> Iterator[Batch]:
        """Batches ``start`` to ``stop - 1``, made ahead of time by ``workers`` processes, or by this process if 0.

        Args:
            pinned: whether batches lie in page-locked memory, from which GPUs copy faster.
        """
        yield from DataLoader(
            self,
            batch_size=None,  # an item is a batch
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=pinned,
            multiprocessing_context="fork" if workers else None,  # decoded images are inherited, not copied
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # otherwise it advances the global one, which the model uses
        )

    def decode(self) -> None:
        """Decode images into memory until all are decoded or the memory is full.

        Raises:
            OSError: a file cannot be read as an image.
        """
        paths = [path for group in self.paths for path in group if path not in self._kept]
        with ThreadPoolExecutor(count_cores()) as pool, tqdm(total=len(paths), unit="image", delay=1.0) as bar:
            for start in range(0, len(paths), _DECODED_AT_ONCE):
                some = paths[start : start + _DECODED_AT_ONCE]
                for path, image in zip(some, pool.map(self._decode, some)):
                    if image.nbytes > self.room:
                        logger.info(
                            "Memory is full with %d images; the others are decoded at every use.", len(self._kept)
                        )
                        return
                    self.room -= image.nbytes
                    self._kept[path] = image
                bar.update(len(some))

    def _indices(self, iteration: int) -> list[int]:
        """Indices of a batch's images. Each epoch is a new permutation of all images."""
        count, indices = len(self.paths), []
        for position in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
            epoch, place = divmod(position, count)
            if place == 0 or not indices:
                order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(count)
            indices.append(int(order[place]))
        return indices

    def _crop(
        self, paths: list[Path], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """A crop (H, W, 3), its place (2,) in the image as flipped, and the objective's targets."""
        scale = float(np.exp(rng.uniform(*np.log(self.scales))))
        place, flip = rng.random(2, dtype=np.float32), rng.random() < 0.5
        whole = [self._read(path) for path in paths]
        if len({image.shape for image in whole}) > 1:
            raise ValueError(f"{', '.join(map(str, paths))} are of different sizes: they must show the same view.")
        seen, *others = (_cut(image, self.crop_size, scale, place, flip) for image in whole)
        shown = np.array([place[0], 1.0 - place[1] if flip else place[1]], np.float32)
        return seen, shown, self.prepare(seen, others, rng)

    def _read(self, path: Path) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return self._kept[path] if path in self._kept else self._decode(path)

    def _decode(self, path: Path) -> np.ndarray:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise OSError(f"{path} cannot be read as an image: remove it, or write it again.")
        shrink = self.longest / max(image.shape[:2])
        if shrink < 1.0:
            image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(image[..., ::-1])


def _companion(path: Path, root: Path, folder: str | Path) -> Path:
    companion = Path(folder) / path.relative_to(root)
    if not companion.is_file():
        raise FileNotFoundError(f"{path} has no companion {companion}: every image needs one with the same name.")
    return companion


def _cut(image: np.ndarray, size: Sequence[int], scale: float, place: np.ndarray, flip: bool) -> np.ndarray:
    """The crop (H, W, 3) of the image resized by ``scale``, or by more where it would not cover the crop."""
    height, width = image.shape[:2]
    scale = max(scale, size[0] / height, size[1] / width)
    rows, columns = min(height, round(size[0] / scale)), min(width, round(size[1] / scale))
    top, left = int(place[0] * (height - rows + 1)), int(place[1] * (width - columns + 1))
    window = image[top : top + rows, left : left + columns]
    crop = cv2.resize(window, (size[1], size[0]), interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR)
    return cv2.flip(crop, 1) if flip else crop


def _memory_bytes() -> int:
    """The machine's memory, or its container's where that is less."""
    limits = [Path(path).read_text().strip() for path in _MEMORY_LIMITS if os.path.isfile(path)]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])
