#!/usr/bin/env python
"""Choose the unlabelled images that a detector would learn most from: see --help, or run

python tools/select_images.py output/demo --images photos/night --budget-images 50
"""

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from soma_det.config import setup_cfg
from soma_det.data import register_from_config
from soma_det.data.datasets.diverse_weather import find_list, image_files
from soma_det.data.datasets.register import SOURCE, WeatherSource
from soma_det.detector import CONFIG_FILE, find_weights, images_in, read_classes
from soma_det.engine.output_dir import check_writable
from soma_det.uda.features import FrozenFeatures
from soma_det.uda.scoring import BoxScorer
from soma_det.uda.selection import SMALLEST, ImageScores, Picks, box_margins, pick_images, rank_images
from soma_det.utils.contact_sheet import contact_sheet
from soma_det.utils.files import atomic_path, write_text
from soma_det.utils.images import read_image
from soma_det.utils.visualizer import draw_detections

EXAMPLES = """
Examples:

200 boxes' worth of a folder of images, by what the demo's detector is unsure of:
    python tools/select_images.py output/demo --images photos/night --budget-boxes 200

The next round, after training with them; boxes whose probabilities have moved count more, labelled images not at all:
    python tools/select_images.py output/round1 --previous output/demo --images photos/night --budget-boxes 200 \\
        --labelled output/demo/selection/selected.txt

The training list of a weather that the run's config names; its annotations are not opened:
    python tools/select_images.py output/demo --split synthdrive_night_rainy_train --budget-images 50

selected.txt has a name in each line: an id, which can be a list in ImageSets/Main, or with --images a path. The same
command goes on after an interruption.
"""
LIST_FILE, TABLE_FILE, JSON_FILE, SHEET_FILE = "selected.txt", "selection.tsv", "selection.json", "selection.jpg"
SCORES_FILE = "scores.jsonl"
SHEET_COLUMNS, SHEET_ROWS, SHEET_CELL = 3, 4, 480

logger = logging.getLogger("soma_det.select")


class Unlabelled(NamedTuple):
    """An image: its name in the lists, and its file."""

    name: str
    file: str


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Rank unlabelled images for labelling by the margins of a trained Faster R-CNN's boxes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run, or its checkpoint, with config.yaml beside it")
    pool = parser.add_mutually_exclusive_group(required=True)
    pool.add_argument("--images", nargs="+", metavar="PATH", help="images and folders of images")
    pool.add_argument("--split", metavar="NAME", help="a split that the run's config names")
    parser.add_argument("--budget-boxes", type=int, metavar="N", help="by the detections that the images seem to have")
    parser.add_argument("--budget-images", type=int, metavar="N")
    parser.add_argument("--previous", metavar="RUN", help="the run of the round before")
    parser.add_argument("--labelled", metavar="FILE", help="a list of images that have labels, such as selected.txt")
    parser.add_argument(
        "--similarity",
        type=float,
        default=0.95,
        metavar="S",
        help="of near-duplicates, which are left out, by the pretrained ViT (%(default)s); 1: keep all, without a ViT",
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: the folder selection in the run's")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    budgets = [args.budget_boxes, args.budget_images]
    if budgets == [None, None] or any(budget is not None and budget < 1 for budget in budgets):
        parser.error("give --budget-boxes or --budget-images, at least 1")
    if not 0 < args.similarity <= 1:
        parser.error(f"--similarity is {args.similarity:g}; it must be above 0, and at most 1")
    return args


def main(args: argparse.Namespace) -> str:
    """Score all images, pick, write the files, and return a summary."""
    cfg, previous = run_config(args.run, args.opts), args.previous and run_config(args.previous, args.opts)
    classes = read_classes(Path(cfg.MODEL.WEIGHTS), cfg)
    if previous and read_classes(Path(previous.MODEL.WEIGHTS), previous) != classes:
        raise ValueError(f"{args.previous} has other classes than {args.run}: give runs with the same ones.")
    pool = list_paths(args.images) if args.images else list_split(cfg, args.split)
    output = Path(args.output) if args.output else Path(cfg.MODEL.WEIGHTS).with_name("selection")
    check_writable(str(output))
    scored = score_images(cfg, previous, pool, args.similarity < 1, output / SCORES_FILE)
    pool = [image for image in pool if image.name in scored]
    entries = [scored[image.name] for image in pool]
    scores = [_image_scores(entry) for entry in entries]
    picks = pick_images(
        rank_images(scores, classes),
        [of.boxes for of in scores],
        most_boxes=args.budget_boxes,
        most_images=args.budget_images,
        features=np.array([entry["feature"] for entry in entries]) if args.similarity < 1 else None,
        similarity=args.similarity,
        labelled=labelled_indices(args.labelled, pool) if args.labelled else (),
    )
    write_selection(picks, pool, scores, output, args)
    draw_sheet(picks, pool, entries, classes, output / SHEET_FILE)
    left_out = f", {len(picks.duplicates)} near-duplicates left out" if picks.duplicates else ""
    return f"{len(picks.ranks)} of {len(pool)} images, with about {picks.boxes} boxes{left_out}. In {output}."


def run_config(run: str, opts: Sequence[str]) -> CfgNode:
    """The config of a run, MODEL.WEIGHTS naming its checkpoint."""
    weights = find_weights(Path(run))
    config = weights.with_name(CONFIG_FILE)
    if not config.is_file():
        raise FileNotFoundError(f"There is no {config}: the checkpoint needs its run's {CONFIG_FILE} beside it.")
    # Boxes from FOREGROUND on count, so detections have to go at least as low.
    words = [*opts, "MODEL.WEIGHTS", str(weights), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"]
    return setup_cfg(str(config), words)


def list_paths(paths: Sequence[str]) -> list[Unlabelled]:
    """The images that are named or in the folders that are, each once."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no image or folder {path}.")
        files += images_in(path) if path.is_dir() else [path]
    return [Unlabelled(name, name) for name in dict.fromkeys(map(str, files))]


def list_split(cfg: CfgNode, name: str) -> list[Unlabelled]:
    """The images of a registered split, without opening an annotation file of a VOC devkit.

    Raises:
        ValueError: there is no such split, or it can only be read with its labels.
        FileNotFoundError: its list does not exist.
    """
    register_from_config(cfg)
    if name not in DatasetCatalog:
        near = [known for known in DatasetCatalog.list() if known.startswith(cfg.DATASETS.WEATHER.PREFIX)]
        raise ValueError(f"There is no split {name!r}; the run's config has {', '.join(near)}.")
    source = MetadataCatalog.get(name).get(SOURCE)
    if isinstance(source, WeatherSource):
        path = find_list(source.root, source.domain, source.split)
        listed = dict.fromkeys(path.read_text(encoding="utf-8-sig").split())
        folder = path.parents[2] / "JPEGImages"
        files = image_files(folder)
        return [Unlabelled(image, str(folder / files[image])) for image in listed if image in files]
    if isinstance(source, tuple) and str(source[0]).endswith(".json"):
        images = json.loads(Path(source[0]).read_text(encoding="utf-8"))["images"]
        return [Unlabelled(str(image["id"]), str(Path(source[1], image["file_name"]))) for image in images]
    raise ValueError(f"The images of {name} cannot be listed without their labels: give their folder by --images.")


def labelled_indices(path: str, pool: Sequence[Unlabelled]) -> list[int]:
    """Where the names in a list are in the pool; names of other images are passed over."""
    names = set(Path(path).read_text(encoding="utf-8").split("\n"))
    return [index for index, image in enumerate(pool) if image.name in names]


def score_images(
    cfg: CfgNode, previous: CfgNode | None, pool: Sequence[Unlabelled], features: bool, path: Path
) -> dict[str, dict]:
    """Name -> what is known of the image, from ``path`` or computed and added to it; unreadable images are left out."""
    key = _key(cfg, previous, features)
    known = _read(path, key)
    missing = [image for image in pool if image.name not in known]
    if not missing:
        return known
    if not known:
        write_text(path, json.dumps({"key": key}) + "\n")
    logger.info("%d images to score, %d are scored already", len(missing), len(pool) - len(missing))
    with path.open("a", encoding="utf-8") as file:
        for entry in _score(cfg, previous, missing, features):
            file.write(json.dumps(entry) + "\n")
            file.flush()
            known[entry["name"]] = entry
    return known


def _score(cfg: CfgNode, previous: CfgNode | None, pool: Sequence[Unlabelled], features: bool) -> Iterator[dict]:
    scorer, before = BoxScorer(cfg), BoxScorer(previous) if previous else None
    extract = FrozenFeatures(_with_pretrained(cfg)) if features else None
    for image in tqdm(pool, desc="scoring", unit="image", disable=None):
        try:
            pixels = read_image(image.file, cfg.INPUT.FORMAT)
        except OSError as error:
            logger.warning("Left out: %s", error)
            continue
        found = scorer.detect(pixels)
        other = None
        if previous and before:
            same = pixels if previous.INPUT.FORMAT == cfg.INPUT.FORMAT else pixels[:, :, ::-1]
            other = before.score(same, found.boxes)
        margins, classes, index = box_margins(found.probabilities, other)
        yield {
            "name": image.name,
            "boxes": found.boxes[index].round(1).tolist(),
            "margins": margins.round(6).tolist(),
            "classes": classes.tolist(),
            "confidences": found.probabilities[index, classes].round(4).tolist(),
            "objectness": round(found.objectness, 6),
            "confident": found.confident,
            "feature": extract(pixels, np.zeros((0, 4)))[0].round(4).tolist() if extract else [],
        }


def _with_pretrained(cfg: CfgNode) -> CfgNode:
    """The config for the frozen ViT; an error that offers a way without it where its weights are gone."""
    weights = cfg.MODEL.VIT.WEIGHTS
    if weights not in ("", "timm") and not Path(weights).is_file():
        raise FileNotFoundError(
            f"The pretrained ViT {weights}, by which near-duplicates are found, is not there: name it with "
            "--opts MODEL.VIT.WEIGHTS FILE, or keep near-duplicates with --similarity 1."
        )
    return cfg


def _key(cfg: CfgNode, previous: CfgNode | None, features: bool) -> str:
    """Changes with the checkpoints, the configs' models and inputs, and the frozen ViT."""
    parts: list = [features]
    for part in filter(None, (cfg, previous)):
        stat = Path(part.MODEL.WEIGHTS).stat()
        parts += [str(part.MODEL), str(part.INPUT), stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path, key: str) -> dict[str, dict]:
    """The entries of a file that was begun with the same models; none of another one."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    if lines[0] != json.dumps({"key": key}):
        return {}
    if lines[-1]:  # an interruption cut the last line short
        write_text(path, "\n".join(lines[:-1]) + "\n")
    return {entry["name"]: entry for entry in map(json.loads, lines[1:-1])}


def _image_scores(entry: dict) -> ImageScores:
    margins, classes = np.array(entry["margins"], dtype=float), np.array(entry["classes"], dtype=int)
    return ImageScores(margins, classes, entry["objectness"], entry["confident"])


def write_selection(
    picks: Picks, pool: Sequence[Unlabelled], scores: Sequence[ImageScores], output: Path, args: argparse.Namespace
) -> None:
    """The list of names, the table with reasons, and the same as json."""
    rows = [
        {
            "rank": number,
            "name": pool[rank.index].name,
            "file": pool[rank.index].file,
            "score": round(rank.score, 4),
            "boxes": scores[rank.index].boxes,
            "reason": rank.reason,
        }
        for number, rank in enumerate(picks.ranks, 1)
    ]
    duplicates = {pool[index].name: pool[other].name for index, other in picks.duplicates.items()}
    content = {"run": args.run, "previous": args.previous, "boxes": picks.boxes, "selected": rows}
    write_text(output / LIST_FILE, "".join(f"{row['name']}\n" for row in rows))
    table = [["rank", "name", "score", "boxes", "reason"], *([*map(str, _shown(row))] for row in rows)]
    write_text(output / TABLE_FILE, "".join("\t".join(line) + "\n" for line in table))
    write_text(output / JSON_FILE, json.dumps({**content, "near_duplicates": duplicates}, indent=2) + "\n")


def _shown(row: dict) -> tuple:
    return row["rank"], row["name"], row["score"], row["boxes"], row["reason"]


def draw_sheet(
    picks: Picks, pool: Sequence[Unlabelled], entries: Sequence[dict], classes: Sequence[str], path: Path
) -> None:
    """The first picks with the boxes whose margins are smallest, in columns from the left."""
    shown = picks.ranks[: SHEET_COLUMNS * SHEET_ROWS]
    if not shown:
        return
    columns = {}
    for first in range(0, len(shown), SHEET_ROWS):
        part = shown[first : first + SHEET_ROWS]
        drawings = [_draw(pool[rank.index], entries[rank.index], classes) for rank in part]
        columns[f"picks {first + 1} to {first + len(part)}"] = drawings
    with atomic_path(path) as temporary:
        Image.fromarray(contact_sheet(columns, SHEET_CELL, classes)).save(temporary, quality=90)


def _draw(image: Unlabelled, entry: dict, classes: Sequence[str]) -> np.ndarray:
    pixels, shown = read_image(image.file), np.argsort(entry["margins"], kind="stable")[:SMALLEST]
    found = Instances(pixels.shape[:2])
    found.pred_boxes = Boxes(torch.tensor(entry["boxes"]).reshape(-1, 4)[shown])
    found.scores = torch.tensor(entry["confidences"])[shown]
    found.pred_classes = torch.tensor(entry["classes"], dtype=torch.int64)[shown]
    return draw_detections(pixels, found, classes, 0.0, SHEET_CELL)


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        print(main(arguments))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"select_images.py: error: {error}")
