"""Reading and augmenting images on one core, beside Detectron2's own mapper."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BoxMode

from benchmarks.report import Limit, Report
from benchmarks.timing import interleave, ratio
from soma_det.config import setup_cfg
from soma_det.data.build import TrainLoader, WeatherMapper
from soma_det.data.transforms.augmentation import PhotometricDistortion, build_train_augmentation

OURS, SAME, OWN_COLORS = (
    "soma_det's loader",
    "Detectron2's mapper, same augmentation",
    "Detectron2's mapper, its own colors",
)
SIZE = (720, 1280)  # (H, W), pixels
CONFIG = Path(__file__).parents[3] / "configs" / "Base-SoMA.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=16, help="in each round (default: %(default)s)")


def run(args: argparse.Namespace) -> Report:
    """Time reading and augmenting the same images in one process, with the recipe's augmentation."""
    cv2.setNumThreads(0)  # as in a worker process
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        records = write_images(Path(folder), args.images, args.seed)
        steps = {name: [("images", step)] for name, step in contestants(records, args.seed).items()}
        timings = {n: parts["images"] for n, parts in interleave(steps, args.rounds, seed=args.seed).items()}
    report = Report("Reading and augmenting 1280 x 720 JPEGs for training, one process", vars(args))
    for name, timing in timings.items():
        rates = {
            "ms an image": 1e3 * timing.median / args.images,
            "images a second": args.images / timing.median,
        }
        report.rows.append({"loader": name, **rates, "against ours": ratio(timing, timings[OURS])})
    report.limits = [Limit("Detectron2's mapper against ours", ratio(timings[SAME], timings[OURS]), 1.0, at_most=False)]
    report.notes = ["Every contestant reads the same images in every round, with its own random numbers."]
    return report


def contestants(records: list[dict], seed: int) -> dict[str, Callable]:
    """Name -> a function that reads and augments every image once."""
    cfg = setup_cfg(str(CONFIG))
    settings = cfg.INPUT.AUGMENTATION
    sizes = {"scale_range": settings.SCALE_RANGE, "crop_size": settings.CROP_SIZE, "flip": True}
    augmentations = build_train_augmentation(**sizes, photometric=True)
    colors = [ColorAugSSDTransform("RGB") if isinstance(a, PhotometricDistortion) else a for a in augmentations]
    ours = iter(TrainLoader(records, WeatherMapper(cfg), total_batch_size=len(records), seed=seed))
    same = DatasetMapper(True, augmentations=augmentations, image_format="RGB")
    own = DatasetMapper(True, augmentations=colors, image_format="RGB")
    return {OURS: lambda: next(ours), SAME: _mapping(same, records, seed), OWN_COLORS: _mapping(own, records, seed)}


def _mapping(mapper: DatasetMapper, records: list[dict], seed: int) -> Callable:
    rounds = iter(range(seed, 10**9))

    def read_all():
        np.random.seed(next(rounds))
        return [mapper(record) for record in records]

    return read_all


def write_images(folder: Path, count: int, seed: int) -> list[dict]:
    """JPEGs as detailed as a photograph of a street, about 150 to 250 kB each, as Detectron2's records."""
    generator = np.random.default_rng(seed)
    records = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        coarse = generator.integers(0, 256, (SIZE[0] // 24, SIZE[1] // 24, 3), dtype=np.uint8)
        image = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += generator.normal(0, 9, image.shape).astype(np.int16)
        cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
        corners = generator.integers(0, 500, (10, 2))
        boxes = [
            dict(bbox=[x, y, x + 120, y + 90], bbox_mode=BoxMode.XYXY_ABS, category_id=2) for x, y in corners.tolist()
        ]
        records.append(dict(file_name=str(path), image_id=number, height=SIZE[0], width=SIZE[1], annotations=boxes))
    return records
