#!/usr/bin/env python
"""Draw detections on images, on splits of a data set, or on a video: see --help, or run

python tools/visualize.py --config-file configs/demo.yaml --weights output/demo/model_final.pth --contact-sheet
"""

import os

# Before torch is imported. Beside another busy process, threads that wait by spinning make each image take 1.5 times as
# long; alone, waiting costs a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import difflib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from drawing.split import Predict, draw_split, saved_detections
from drawing.video import draw_video
from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.detector import IMAGE_SUFFIXES
from soma_det.engine.predictor import build_predictor
from soma_det.evaluation import domain_labels
from soma_det.utils.contact_sheet import contact_sheet
from soma_det.utils.files import atomic_path
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import draw_detections

EXAMPLES = """
Some images of every test split of the config, ground truth beside detections:
    python tools/visualize.py --config-file configs/demo.yaml --weights output/demo/model_final.pth

One sheet with a column for each split and four images in each:
    python tools/visualize.py --config-file configs/demo.yaml --weights output/demo/model_final.pth \\
        --contact-sheet --count 4

Your own images, a folder of them, and a video:
    python tools/visualize.py --config-file configs/demo.yaml --weights output/demo/model_final.pth \\
        --input street.jpg photos/ drive.mp4 --output drawings

Detections that an evaluation has saved, without the model:
    python tools/visualize.py --config-file configs/demo.yaml --dataset synthdrive_night_rainy_test \\
        --predictions output/demo/inference/synthdrive_night_rainy_test/coco_instances_results.json
"""

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
DRAWN = "_detections"  # ends the names of all drawings, so that none can take the place of an image
COUNT, SHEET_ROWS, SHEET_CELL = 20, 4, 480  # images of a split alone and on a sheet, pixels of a cell's width

logger = logging.getLogger("soma_det.visualize")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; contradictions end the program with a message."""
    parser = argparse.ArgumentParser(
        description="Draw detections on splits of a data set (beside the ground truth), images, folders or videos.",
        epilog="Examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="the model's config; also names the data sets"
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; instead of MODEL.WEIGHTS of the config")
    parser.add_argument(
        "--predictions", nargs="+", metavar="FILE", help="saved detections (COCO results), one file per --dataset"
    )
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="registered splits (default: DATASETS.TEST)")
    parser.add_argument("--input", nargs="+", metavar="PATH", help="images, folders of images, videos")
    parser.add_argument("--output", default="output/drawings", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="C", help="0 to 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help=f"images per split (default: {COUNT}, on a sheet {SHEET_ROWS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the images of a split (default: %(default)s)")
    parser.add_argument("--contact-sheet", action="store_true", help="one image with a column for each split")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    _check(parser, args)
    args.count = args.count or (SHEET_ROWS if args.contact_sheet else COUNT)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.predictions and len(args.predictions) != len(args.dataset or []):
        parser.error("--predictions needs --dataset with as many names as there are files")
    if not args.predictions and not args.config_file:
        parser.error("give --config-file and --weights, or --predictions and --dataset")
    if args.input and (args.dataset or args.predictions or args.contact_sheet):
        parser.error("--input cannot be combined with --dataset, --predictions or --contact-sheet")
    if args.config_file and not os.path.isfile(args.config_file):
        parser.error(f"there is no config file {args.config_file}")
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold is {args.confidence_threshold:g}; it must be from 0 to 1")
    if args.count is not None and args.count < 1:
        parser.error(f"--count is {args.count}; it must be at least 1")


def main(args: argparse.Namespace) -> list[Path]:
    """Make the drawings that the command line asks for.

    Returns:
        the files written.
    """
    cfg = setup_cfg(args.config_file, [*args.opts, *(["MODEL.WEIGHTS", args.weights] if args.weights else [])])
    register_from_config(cfg)
    if args.input:
        return draw_inputs(args, cfg)
    names = args.dataset or list(cfg.DATASETS.TEST)
    _check_registered(names)
    predictors = _predictors(args, cfg, names)
    return [_draw_sheet(args, predictors)] if args.contact_sheet else _draw_splits(args, predictors)


def _check_registered(names: list[str]) -> None:
    if not names:
        raise ValueError("The config has no DATASETS.TEST: name the splits to draw with --dataset.")
    for name in names:
        if name not in DatasetCatalog:
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            raise ValueError(f"There is no data set {name!r}; registered names like it: {', '.join(near) or 'none'}.")


def _predictors(args: argparse.Namespace, cfg: CfgNode, names: list[str]) -> dict[str, Predict]:
    """For each split, what gives the detections for one of its records."""
    if args.predictions:
        return {name: saved_detections(path, name) for name, path in zip(names, args.predictions)}
    predictor = build_predictor(cfg)
    return {name: lambda record, image: predictor(image[:, :, ::-1]) for name in names}


def _draw_splits(args: argparse.Namespace, predictors: dict[str, Predict]) -> list[Path]:
    written = []
    for name, predict in predictors.items():
        drawings = draw_split(name, predict, args.count, args.seed, args.confidence_threshold)
        for record, drawing in _with_progress(drawings, name, args.count):
            path = Path(args.output) / name / f"{str(record['image_id']).replace(os.sep, '_')}{DRAWN}.jpg"
            _save(drawing, path)
            written.append(path)
    return written


def _draw_sheet(args: argparse.Namespace, predictors: dict[str, Predict]) -> Path:
    labels, columns = domain_labels(predictors), {}
    options = {"width": SHEET_CELL, "ground_truth": False}
    for name, predict in predictors.items():
        drawings = draw_split(name, predict, args.count, args.seed, args.confidence_threshold, **options)
        columns[labels[name]] = [drawing for _, drawing in _with_progress(drawings, name, args.count)]
    classes = MetadataCatalog.get(next(iter(predictors))).thing_classes
    path = Path(args.output) / "contact_sheet.png"
    _save(contact_sheet(columns, SHEET_CELL, classes), path)
    return path


def _with_progress(drawings: Iterator, name: str, count: int) -> Iterator:
    return tqdm(drawings, desc=name, total=min(count, len(DatasetCatalog.get(name))), unit="image")


def draw_inputs(args: argparse.Namespace, cfg: CfgNode) -> list[Path]:
    """Draw on the images, folders and videos of ``--input``.

    Raises:
        OSError: an image or video that was named does not exist or cannot be read, or no file was drawn at all.
            Unreadable files of a folder are skipped with a warning.
    """
    jobs = list(_plan(args.input, Path(args.output)))  # before the model is loaded: paths may be wrong
    predictor, classes = build_predictor(cfg), _class_names(cfg)

    def draw(image: np.ndarray) -> np.ndarray:
        return draw_detections(image[:, :, ::-1], predictor(image), classes, args.confidence_threshold)[:, :, ::-1]

    written, skipped = [], 0
    for source, target, named in tqdm(jobs, desc="input", unit="file", disable=len(jobs) == 1):
        try:
            if source.suffix.lower() in VIDEO_SUFFIXES:
                draw_video(source, target, draw)
                written.append(target)
                continue
            image = read_image(source)
        except OSError as error:
            if named:
                raise
            logger.warning(f"Skipped: {error}")
            skipped += 1
            continue
        _save(draw(image[:, :, ::-1])[:, :, ::-1], target)
        written.append(target)
    if skipped:
        logger.warning(f"{skipped} of {len(jobs)} files were skipped, because they cannot be read.")
    if not written:
        raise OSError(f"Nothing was drawn: none of the {len(jobs)} files in {', '.join(args.input)} can be read.")
    return written


def _class_names(cfg: CfgNode) -> list[str]:
    """The classes that the model was trained on."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return list(MetadataCatalog.get(names[0]).thing_classes if names else cfg.DATASETS.WEATHER.CLASSES)


def _plan(inputs: list[str], output: Path) -> Iterator[tuple[Path, Path, bool]]:
    """(source, target, whether it was named itself) for every image and video; no two targets are the same."""
    taken: set[Path] = set()
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"There is no image, folder or video {path}.")
        sources = _files_below(path) if path.is_dir() else [path]
        for source in sources:
            is_video = source.suffix.lower() in VIDEO_SUFFIXES
            folder = output / source.parent.relative_to(path) if path.is_dir() else output
            suffix, number = ".mp4" if is_video else ".jpg", 1
            target = folder / f"{source.stem}{DRAWN}{suffix}"
            while target in taken:
                number += 1
                target = folder / f"{source.stem}_{number}{DRAWN}{suffix}"
            taken.add(target)
            yield source, target, not path.is_dir()


def _files_below(folder: Path) -> list[Path]:
    """Images and videos in a folder and its subfolders, without drawings of earlier runs."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES]
    files = [p for p in files if not p.stem.endswith(DRAWN)]
    if not files:
        raise FileNotFoundError(
            f"There is no image or video in {folder} (looked for {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)})."
        )
    return files


def _save(image: np.ndarray, path: Path) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, quality=92)


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        files = main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"visualize.py: error: {error}")
    print(f"Wrote {len(files)} file{'s' if len(files) > 1 else ''} to {arguments.output}.")
