#!/usr/bin/env python
"""Measure how far weathers lie from the source, on the features of the pretrained ViT: see --help, or run

python tools/domain_shift.py --config-file configs/demo.yaml --output output/shift
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import math
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from tqdm import tqdm

from drawing.shift import draw_shift
from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.engine.output_dir import check_writable
from soma_det.evaluation.detections import box_xyxy
from soma_det.evaluation.results import load_results
from soma_det.evaluation.summary import domain_labels
from soma_det.uda.features import FrozenFeatures
from soma_det.uda.shift import LEAST, DomainShift, Estimate, Sample, ShiftTable, measure_shift
from soma_det.utils.files import atomic_path, write_text
from soma_det.utils.images import read_image

EXAMPLES = """
Examples:

Every test split of the config against its source, beside the loss in AP of a run:
    python tools/domain_shift.py --config-file configs/demo.yaml --results output/demo/results.json

Another ViT, and training images of the source as one more row: other images, the same weather:
    python tools/domain_shift.py --config-file configs/day_night.yaml --output output/shift_night \\
        --splits day_night_day_test day_night_day_train day_night_night_train \\
        --opts MODEL.VIT.NAME vit_small_patch14_dinov2.lvd142m MODEL.VIT.WEIGHTS timm

The same command again computes features only where images, boxes or the ViT have changed.
"""
JSON_FILE, TABLES_FILE, CHART_FILE = "shift.json", "shift.md", "shift.png"
BOXES, IMAGES = "In boxes, mean over classes", "Whole images"

NOTES = """\
- Features: patch tokens of the last block of the pretrained ViT, before any adaptation, averaged in ground-truth boxes
  or over the image, and standardized by the source. Boxes are used, so this is an analysis, not a method.
- IDD: divergence between domains, 0 to 1, and ICV: variation within classes, in bits. Both are Jensen-Shannon
  divergences of softmax(features / tau), this project's definitions after Luo et al. 2024; the formulas are in
  soma_det/uda/shift.py. Tau: so that the median of the source's largest probability is the peak in the heading.
- A-distance: 2 (1 - 2 error) of a linear classifier that tells the domains apart: 0 by chance, 2 without an error.
- Two halves: one half of the source's images against the other. Few boxes alone give an IDD above 0: read the other
  rows against this one. Every row has as many boxes of each class, from each side.
- ±: half of a 95 % interval over resampled images. Images of one street depend on each other, which it does not know.
- A few weathers do not make a correlation between shift and loss in AP.
"""

logger = logging.getLogger("soma_det.shift")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure how far domains lie from the source on features of the pretrained ViT.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="names the ViT and the data sets")
    parser.add_argument("--splits", nargs="+", metavar="NAME", help="registered splits (default: DATASETS.TEST)")
    parser.add_argument("--source", metavar="NAME", help="one of them (default: DATASETS.SOURCE_TEST)")
    parser.add_argument("--results", metavar="FILE", help="results.json of a run, for its loss in AP")
    parser.add_argument("--output", default="output/shift", metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument(
        "--peaks", nargs="+", type=float, default=[0.1, 0.3], metavar="P", help="temperatures, by the source's peak"
    )
    parser.add_argument(
        "--least", type=int, default=LEAST, metavar="N", help="boxes of a class everywhere (%(default)s)"
    )
    parser.add_argument("--resamples", type=int, default=200, metavar="N", help="for the intervals (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of subsets and resamples (%(default)s)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    args.output = Path(args.output)
    if args.least < 2 or args.resamples < 2 or not all(0 < peak < 1 for peak in args.peaks):
        parser.error("--least and --resamples are at least 2, and --peaks between 0 and 1")
    return args


def main(args: argparse.Namespace) -> str:
    """Measure, write the files, and return the tables as text."""
    cfg = setup_cfg(args.config_file, args.opts)
    register_from_config(cfg)
    splits = list(dict.fromkeys(args.splits or cfg.DATASETS.TEST))
    source = args.source or cfg.DATASETS.SOURCE_TEST
    _check_splits(splits, source)
    losses = read_losses(args.results, source, splits) if args.results else {}
    check_writable(str(args.output))
    samples = {name: load_features(cfg, name, args.output / "features") for name in splits}
    options = {"peaks": args.peaks, "resamples": args.resamples, "seed": args.seed}
    tables: dict[str, ShiftTable | str] = {}
    for heading, least, pick in ((BOXES, args.least, in_boxes), (IMAGES, 2, of_images)):
        logger.info("%s: %d resamples of %d splits", heading, args.resamples, len(splits))
        try:
            tables[heading] = measure_shift(
                {name: pick(s) for name, s in samples.items()}, source, least=least, **options
            )
        except ValueError as error:
            tables[heading] = str(error)
    return report(tables, samples, losses, source, args)


def _check_splits(splits: Sequence[str], source: str) -> None:
    unknown = [name for name in splits if name not in DatasetCatalog]
    if unknown:
        raise ValueError(f"There is no split {unknown[0]!r}. Registered: {', '.join(DatasetCatalog.list()[-12:])}, ...")
    if source not in splits:
        raise ValueError(f"The source is {source!r}, which is not among the splits: name it with --source or --splits.")
    check_data_exists(splits)


def read_losses(path: str, source: str, splits: Sequence[str]) -> dict[str, float]:
    """Split -> points of VOC AP50 that the run of a results file loses against the source, where it was tested."""
    results = load_results(path)["results"]
    if source not in results:
        raise ValueError(f"{path} has no score of {source}, only of {', '.join(results)}: give the results of its run.")
    clear = results[source]["voc"]["AP50"]
    return {name: clear - results[name]["voc"]["AP50"] for name in splits if name in results and name != source}


def load_features(cfg: CfgNode, name: str, folder: Path) -> Sample:
    """The features of a split, whole images as class -1, computed or read from ``folder``."""
    records, classes = DatasetCatalog.get(name), tuple(MetadataCatalog.get(name).thing_classes)
    key, path = _key(cfg, records), folder / f"{name}.npz"
    arrays = _read(path, key)
    if arrays is None:
        arrays = _compute(cfg, name, records)
        with atomic_path(path) as temporary:
            np.savez(temporary, key=key, **arrays)
    return Sample(arrays["features"], arrays["classes"], arrays["images"], classes)


def _compute(cfg: CfgNode, name: str, records: Sequence[dict]) -> dict[str, np.ndarray]:
    extract = FrozenFeatures(cfg)
    features, classes, images = [], [], []
    for number, record in enumerate(tqdm(records, desc=name, unit="image", disable=None)):
        objects = _objects(record)
        found = extract(read_image(record["file_name"], cfg.INPUT.FORMAT), np.array([box for _, box in objects]))
        features.append(found.astype(np.float32))
        classes += [-1, *(label for label, _ in objects)]
        images += [number] * len(found)
    return {"features": np.concatenate(features), "classes": np.array(classes), "images": np.array(images)}


def _objects(record: Mapping) -> list[tuple[int, Sequence[float]]]:
    """(class, XYXY) of the annotations that stand for one object."""
    return [(a["category_id"], box_xyxy(a)) for a in record.get("annotations", []) if not a.get("iscrowd")]


def _key(cfg: CfgNode, records: Sequence[dict]) -> str:
    """Changes with the ViT, its weights, the size of its input, the images and the boxes."""
    weights = Path(cfg.MODEL.VIT.WEIGHTS)
    file = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else []
    vit = [cfg.MODEL.VIT.NAME, str(weights), file, cfg.MODEL.VIT.PATCH_SIZE, list(cfg.MODEL.VIT.IMG_SIZE)]
    pixels = [*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST]
    data = [(record["file_name"], [[c, *map(float, box)] for c, box in _objects(record)]) for record in records]
    return hashlib.sha256(json.dumps([vit, pixels, cfg.INPUT.FORMAT, data]).encode()).hexdigest()


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as file:
            return dict(file) if str(file["key"]) == key else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def in_boxes(sample: Sample) -> Sample:
    """The boxes alone."""
    return sample.rows(np.flatnonzero(sample.classes >= 0))


def of_images(sample: Sample) -> Sample:
    """The whole images alone, all of one class."""
    rows = sample.rows(np.flatnonzero(sample.classes < 0))
    return Sample(rows.features, np.zeros(len(rows.images), dtype=int), rows.images, ("image",))


def report(
    tables: Mapping[str, ShiftTable | str],
    samples: Mapping[str, Sample],
    losses: Mapping[str, float],
    source: str,
    args: argparse.Namespace,
) -> str:
    """Write the json, the tables and the chart; return the tables as text."""
    labels = domain_labels(samples)
    sizes = {name: (len(np.unique(s.images)), int((s.classes >= 0).sum())) for name, s in samples.items()}
    content = {
        "source": source,
        "labels": labels,
        "sizes": {name: {"images": images, "boxes": boxes} for name, (images, boxes) in sizes.items()},
        "ap50_losses": dict(losses),
        "settings": {"least": args.least, "resamples": args.resamples, "seed": args.seed},
        "tables": {head: t if isinstance(t, str) else _plain(t) for head, t in tables.items()},
    }
    write_text(args.output / JSON_FILE, json.dumps(content, indent=2) + "\n")
    texts = {kind: _text(tables, labels, sizes, losses, source, kind) for kind in ("simple", "github")}
    head = f"# Distance from {labels[source]}\n\n"
    write_text(args.output / TABLES_FILE, "\n\n".join([head + texts["github"], f"![]({CHART_FILE})", NOTES]))
    measured = {head: t for head, t in tables.items() if isinstance(t, ShiftTable)}
    with atomic_path(args.output / CHART_FILE) as temporary:
        draw_shift(measured, labels, labels[source], losses, temporary)
    return texts["simple"]


def _text(
    tables: Mapping[str, ShiftTable | str],
    labels: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int]],
    losses: Mapping[str, float],
    source: str,
    tablefmt: str,
) -> str:
    parts, mark = [], "## " if tablefmt == "github" else ""
    for heading, table in tables.items():
        parts.append(mark + heading)
        if isinstance(table, str):
            parts.append(table)
            continue
        peaks = list(table.temperatures)
        headers = ["domain", "images", "boxes", *(f"IDD {p:g}" for p in peaks), "A-distance"]
        headers += [*(f"ICV {p:g}" for p in peaks), *(["AP50 lost"] if losses else [])]
        rows = [[f"{labels[source]}, two halves", *_cells(table.null, sizes[source]), *([""] if losses else [])]]
        for name, shift in table.domains.items():
            loss = [f"{losses[name]:.1f}" if name in losses else "-"] if losses else []
            rows.append([labels[name], *_cells(shift, sizes[name]), *loss])
        align = ["left", *["right"] * (len(headers) - 1)]
        parts.append(tabulate(rows, headers, tablefmt=tablefmt, colalign=align, disable_numparse=True))
        parts.append(_drawn(table, labels))
    return "\n\n".join(parts)


def _cells(shift: DomainShift, size: tuple[int, int]) -> list[str]:
    figures = [*shift.divergence.values(), shift.a_distance, *shift.consistency.values()]
    return [*(f"{n:,}" for n in size), *map(_cell, figures)]


def _cell(estimate: Estimate) -> str:
    low, high = estimate.interval
    return "-" if math.isnan(low) else f"{estimate.value:.3f} ± {(high - low) / 2:.3f}"


def _drawn(table: ShiftTable, labels: Mapping[str, str]) -> str:
    """How many rows are compared, and which classes are left out, in words."""
    drawn = ", ".join(f"{name} {n}" for name, n in table.counts.items())
    text = f"Drawn from each side: {drawn}."
    if table.left_out:
        rare = (
            f"{name} ({min(of.values())} in {labels[min(of, key=of.__getitem__)]})"
            for name, of in table.left_out.items()
        )
        text += f" Left out, too few boxes: {', '.join(rare)}."
    return text


def _plain(table: ShiftTable) -> dict:
    """What json can hold."""
    content = dataclasses.asdict(table)
    for shift in [content["null"], *content["domains"].values()]:
        shift["a_distance"] = {k: None if math.isnan(v) else v for k, v in shift["a_distance"].items()}
        for key in ("divergence", "consistency"):
            shift[key] = {f"{peak:g}": estimate for peak, estimate in shift[key].items()}
    content["temperatures"] = {f"{peak:g}": value for peak, value in table.temperatures.items()}
    return content


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        print(main(arguments))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"domain_shift.py: error: {error}")
    print(f"\nAlso in {arguments.output}: {TABLES_FILE}, {JSON_FILE}, {CHART_FILE}")
