#!/usr/bin/env python
"""Evaluate the weights between the pretrained ViT and the trained one: see --help, or run

python tools/interpolate.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tabulate import tabulate
from torch import Tensor, nn

from soma_det.adapters import find_adapter_layers, interpolate_weights, is_mergeable, merge
from soma_det.config import setup_cfg
from soma_det.data import check_data_exists, register_from_config
from soma_det.engine import Trainer, load_model
from soma_det.evaluation.chart import draw_curves
from soma_det.evaluation.results import CHART_FILE, RESULTS_FILE, TABLES_FILE, load_results
from soma_det.evaluation.summary import WeatherSummary, domain_labels, summarize, target_splits
from soma_det.modeling.backbone.build import create_pretrained
from soma_det.modeling.backbone.timm_vit import find_vits
from soma_det.utils.files import atomic_path, write_text

EXAMPLES = """
Examples:

The curve from the pretrained ViT to the trained one, under the trained pyramid and heads:
    python tools/interpolate.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth

Go on after an interruption; finer steps; a smaller test:
    python tools/interpolate.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth --resume \\
        --alphas 0.5,0.6,0.7,0.8,0.9,1 DATASETS.TEST "('synthdrive_daytime_clear_test','synthdrive_night_rainy_test')"

Keep one of them as a checkpoint, which is evaluated with MODEL.ADAPTER.NAME full:
    python tools/interpolate.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth --resume \\
        --save 0.8

Choose alpha by the source or by a weather that counts as seen, never by the unseen ones.
"""
ALPHAS = "0,0.2,0.4,0.6,0.8,1"

NOTES = """\
- VOC AP50, 0 to 100. Alpha 0 is the pretrained ViT, 1 the trained one; pyramid and heads are always the trained ones.
- Mean of unseen: over all splits but the source, each with the same weight.
- An alpha that is chosen by the unseen splits is no measurement of them: choose it by the source or by a weather that
  counts as seen.
"""

logger = logging.getLogger("soma_det.interpolate")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Evaluate a trained detector with its ViT moved back towards the pretrained weights (WiSE-FT).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config.yaml of the run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint (.pth) of the run")
    parser.add_argument("--alphas", default=ALPHAS, metavar="LIST", help="shares of the change, by default %(default)s")
    parser.add_argument("--output", metavar="FOLDER", help="default: the folder interpolation beside the checkpoint")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier call has evaluated")
    parser.add_argument("--save", type=float, metavar="ALPHA", help="also write model_alpha_<ALPHA>.pth")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    args.output = Path(args.output or Path(args.weights).with_name("interpolation"))
    try:
        args.alphas = sorted({float(word) for word in args.alphas.split(",")})
    except ValueError:
        parser.error(f"--alphas is {args.alphas!r}: give numbers from 0 to 1 with commas, such as {ALPHAS}")
    wrong = [alpha for alpha in [*args.alphas, args.save or 0] if not 0 <= alpha <= 1]
    if wrong:
        parser.error(f"alpha {wrong[0]} is outside 0 (pretrained) to 1 (trained)")
    return args


class Interpolator:
    """A detector whose ViT can be set to any point between pretrained and trained.

    Args:
        model: trained, its ViT adapted or plain; the ViT is merged in place.
        pretrained: the plain ViT that the training started from.

    Raises:
        ValueError: the detector has no ViT, or one that cannot be merged or has not changed.
    """

    def __init__(self, model: nn.Module, pretrained: nn.Module):
        vits = list(find_vits(model).values())
        if not vits:
            raise ValueError("The detector has no ViT of timm: there are no pretrained weights to go back to.")
        self.model, self.vit = model, vits[0].model
        if find_adapter_layers(self.vit) and not is_mergeable(self.vit):
            raise ValueError("This adapter cannot be merged: there are no weights between it and the pretrained ones.")
        merge(self.vit)
        self.trained = {name: tensor.clone() for name, tensor in self.vit.state_dict().items()}
        self.pretrained: Mapping[str, Tensor] = pretrained.state_dict()
        start = interpolate_weights(self.pretrained, self.trained, 0.0)
        if all(torch.equal(start[name], self.trained[name]) for name in start):
            raise ValueError(
                "The trained ViT equals the pretrained one (MODEL.ADAPTER.NAME frozen): nothing lies between."
            )

    def set_alpha(self, alpha: float) -> None:
        """Put the weights of this alpha into the detector."""
        self.vit.load_state_dict(interpolate_weights(self.pretrained, self.trained, alpha))


def main(args: argparse.Namespace) -> None:
    """Evaluate every alpha, report, and save what was asked for."""
    cfg = setup_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    register_from_config(cfg)
    check_data_exists(cfg.DATASETS.TEST)
    pretrained = create_pretrained(cfg, cfg.MODEL.VIT.WEIGHTS)
    interpolator = Interpolator(load_model(cfg), pretrained)
    summaries = {}
    for number, alpha in enumerate(args.alphas, 1):
        logger.info("Alpha %g, %d of %d", alpha, number, len(args.alphas))
        summaries[alpha] = evaluate(cfg, interpolator, alpha, args.output / f"alpha_{alpha:g}", args.resume)
        print(report(summaries, args.output, args.weights))
    if args.save is not None:
        path = args.output / f"model_alpha_{args.save:g}.pth"
        interpolator.set_alpha(args.save)
        with atomic_path(path) as temporary:
            torch.save({"model": interpolator.model.state_dict()}, temporary)
        print(f"Wrote {path}. Evaluate it by tools/train_net.py --eval-only with MODEL.ADAPTER.NAME full.")


def evaluate(cfg: CfgNode, interpolator: Interpolator, alpha: float, folder: Path, resume: bool) -> WeatherSummary:
    """The scores of one alpha, evaluated or, with ``resume``, read from its folder."""
    if resume and (folder / RESULTS_FILE).exists():
        known = load_results(folder)
        if set(known["results"]) == set(cfg.DATASETS.TEST):
            return summarize(known["results"], known["source"], known["labels"], known["targets"])
    interpolator.set_alpha(alpha)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    results = Trainer.test(cfg, interpolator.model)
    return summarize(results, cfg.DATASETS.SOURCE_TEST, domain_labels(results), target_splits(results, cfg.UDA.TARGET))


def report(summaries: Mapping[float, WeatherSummary], folder: Path, weights: str) -> str:
    """Write results.json, results.md and results.png into ``folder``; return the table as text."""
    first = next(iter(summaries.values()))
    labels = {name: label + (" (source)" if name == first.source else "") for name, label in first.labels.items()}
    headers, rows = ["alpha", *labels.values(), "mean of unseen"], []
    for alpha, summary in summaries.items():
        scores = [summary.results[name]["voc"]["AP50"] for name in labels]
        rows.append([f"{alpha:g}", *map(_cell, [*scores, summary.voc_ap50.mean_unseen])])
    write_text(folder / RESULTS_FILE, json.dumps({"weights": weights, "alphas": _plain(summaries)}, indent=2) + "\n")
    text = [f"# From pretrained to trained\n\n- weights: {weights}", _table(headers, rows, "github")]
    text += [f"![VOC AP50 over alpha]({CHART_FILE})", NOTES]
    write_text(folder / TABLES_FILE, "\n\n".join(text))
    curves = {label: [s.results[name]["voc"]["AP50"] for s in summaries.values()] for name, label in labels.items()}
    with atomic_path(folder / CHART_FILE) as temporary:
        draw_curves(list(summaries), curves, labels.get(first.source), temporary, "alpha: 0 pretrained, 1 trained")
    return f"{_table(headers, rows, 'simple')}\n\nAlso in {folder}: {TABLES_FILE}, {RESULTS_FILE}, {CHART_FILE}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], tablefmt: str) -> str:
    return tabulate(rows, headers, tablefmt=tablefmt, colalign=["right"] * len(headers), disable_numparse=True)


def _cell(score: float | None) -> str:
    return "-" if score is None or score != score else f"{score:.1f}"


def _plain(summaries: Mapping[float, WeatherSummary]) -> dict[str, dict[str, float | None]]:
    """alpha -> split -> VOC AP50, and the mean of the unseen splits; None without a score."""
    plain = {}
    for alpha, summary in summaries.items():
        scores = {name: result["voc"]["AP50"] for name, result in summary.results.items()}
        known = {name: None if score != score else score for name, score in scores.items()}
        plain[f"{alpha:g}"] = {**known, "mean of unseen": summary.voc_ap50.mean_unseen}
    return plain


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        main(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"interpolate.py: error: {error}")
