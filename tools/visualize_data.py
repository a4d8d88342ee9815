#!/usr/bin/env python
"""Draw training images as the model gets them: see --help, or run

python tools/visualize_data.py --config-file configs/demo.yaml
"""

import argparse
import sys
from pathlib import Path

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.data.dataset_mapper import WeatherMapper
from soma_det.utils.contact_sheet import contact_sheet
from soma_det.utils.files import atomic_path
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import draw_ground_truth

EXAMPLES = """
Examples:

Four images, each as on disk and in three draws of the config's augmentation:
    python tools/visualize_data.py --config-file configs/demo.yaml

Simulated weather alone:
    python tools/visualize_data.py --config-file configs/demo.yaml --output output/weather.jpg \\
        INPUT.AUGMENTATION.WEATHER.PROBABILITY 1.0 INPUT.AUGMENTATION.PHOTOMETRIC False \\
        INPUT.AUGMENTATION.SCALE_RANGE "[1.0, 1.0]"
"""
CELL = 400  # pixels, width of an image on the sheet


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Draw training images, with their boxes, after augmentation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--output", default="output/training_images.jpg", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--count", type=int, default=4, metavar="N", help="images (%(default)s)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="augmentations of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses images and augmentations (%(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    if args.count < 1 or args.draws < 1:
        parser.error("--count and --draws are numbers from 1")
    if not args.output.lower().endswith((".jpg", ".jpeg", ".png")):
        parser.error(f"--output is {args.output}: give an image file, .jpg or .png")
    return args


def main(args: argparse.Namespace) -> None:
    """Write the sheet."""
    cfg = setup_cfg(args.config_file, args.opts)
    register_from_config(cfg)
    check_data_exists(cfg.DATASETS.TRAIN)
    sheet = draw_sheet(cfg, args.count, args.draws, args.seed)
    with atomic_path(args.output) as temporary:
        Image.fromarray(sheet).save(temporary, quality=88)


def draw_sheet(cfg: CfgNode, count: int, draws: int, seed: int) -> np.ndarray:
    """RGB (H, W, 3): a row for each image, as on disk and in several draws of its augmentation."""
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    mapper = WeatherMapper(cfg, is_train=True)
    seed_all_rng(seed)
    columns: dict[str, list[np.ndarray]] = {"as on disk": [], **{f"draw {n}": [] for n in range(1, draws + 1)}}
    for record in tqdm([records[index] for index in chosen], unit="image"):
        columns["as on disk"].append(draw_ground_truth(read_image(record["file_name"]), record, classes, CELL))
        for number in range(1, draws + 1):
            columns[f"draw {number}"].append(draw_sample(mapper(record), classes, cfg.INPUT.FORMAT))
    return contact_sheet(columns, CELL, classes)


def draw_sample(sample: dict, classes: list[str], image_format: str) -> np.ndarray:
    """RGB (H, W, 3) uint8: a mapped training image with its boxes; what photometric distortion left 0 to 255 is cut."""
    image = np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8))
    boxes = sample["instances"].gt_boxes.tensor.tolist()
    numbers = sample["instances"].gt_classes.tolist()
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": number} for box, number in zip(boxes, numbers)
    ]
    rgb = np.ascontiguousarray(image[:, :, ::-1]) if image_format == "BGR" else image
    return draw_ground_truth(rgb, {"annotations": annotations}, classes, CELL)


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"visualize_data.py: error: {error}")
    print(f"Wrote {Path(arguments.output)}.")
