"""Inference of a merged ViT beside the plain one, or with --run of a trained detector by several runtimes."""

import argparse
import copy

import torch
from torch import Tensor, nn

from benchmarks import runtimes
from benchmarks.contestants import adapt, create_vit
from benchmarks.detector import random_images
from benchmarks.report import Limit, Report
from benchmarks.timing import interleave, ratio
from soma_det.adapters import SomaLinear, merge
from soma_det.modeling.backbone.timm_vit import TimmViT

PLAIN, MERGED = "plain timm ViT", "SoMA merged"
OUTPUT_LIMIT = {"float32": 1e-5}  # relative; lower precisions round more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a trained detector; without --run it is the backbone alone."""
    runtimes.add_arguments(parser)


def run(args: argparse.Namespace) -> Report:
    """Time the forward pass before and after merging, and compare outputs and modules."""
    if args.run:
        return runtimes.run(args)
    models = build_models(args)
    x = torch.stack([p["image"] for p in random_images(args.batch, args.pixels, args.seed, False)]).float()
    x = x.div(255).to(args.device)
    outputs = {name: _forward(model, x, args) for name, model in models.items()}
    if args.compile:
        for model in models.values():
            model.compile()
    steps = {name: [("forward", lambda m=model: _forward(m, x, args))] for name, model in models.items()}
    timings = {n: parts["forward"] for n, parts in interleave(steps, args.rounds, 2, args.device, args.seed).items()}
    report = Report("Inference of the backbone", vars(args))
    for name, timing in timings.items():
        low, high = timing.quartiles
        times = {"ms": 1e3 * timing.median, "quartiles ms": f"{1e3 * low:.4g} to {1e3 * high:.4g}"}
        report.rows.append({"model": name, **times, "against plain": ratio(timing, timings[PLAIN])})
    error = float((outputs[MERGED] - outputs["SoMA"]).norm() / outputs["SoMA"].norm())
    if args.dtype in OUTPUT_LIMIT:
        report.limits = [Limit("relative change of the outputs by merging", error, OUTPUT_LIMIT[args.dtype])]
    same = [type(m) for m in models[MERGED].modules()] == [type(m) for m in models[PLAIN].modules()]
    report.notes = [f"The merged ViT has {'' if same else 'NOT '}the same modules as the plain one."]
    return report


def build_models(args: argparse.Namespace) -> dict[str, nn.Module]:
    """Name -> backbone in evaluation mode. The factors of the adapted ones are random, as after a training."""
    torch.manual_seed(args.seed)
    plain = create_vit(args.vit, args.pixels)
    adapted = copy.deepcopy(plain)
    adapt(adapted, "soma", args.rank)
    two_branch = copy.deepcopy(plain)
    adapt(two_branch, "two_branch", args.rank)
    merged = copy.deepcopy(adapted)
    merge(merged)
    assert any(isinstance(module, SomaLinear) for module in adapted.modules())
    models = {PLAIN: plain, MERGED: merged, "SoMA": adapted, "two branches": two_branch}
    return {name: TimmViT(model, [-1]).eval().to(args.device) for name, model in models.items()}


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor, args: argparse.Namespace) -> Tensor:
    dtype = getattr(torch, args.dtype)
    with torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
        return next(iter(model(x).values()))
