"""Start-up: decomposing the weights of a ViT."""

import argparse
import copy

import torch
from torch import Tensor, nn

from benchmarks.contestants import adapted_blocks, create_vit
from benchmarks.report import Limit, Report
from benchmarks.timing import interleave
from soma_det.adapters import SomaConfig, SomaLinear, adapt
from soma_det.adapters.selection import select_linears, stacked_parts

LIMITS = {"l": 25.0}  # seconds on two cores
CHECKED = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of the last block


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This benchmark has no options of its own."""


def run(args: argparse.Namespace) -> Report:
    """Time the adaptation of a ViT, and compare some weights with the full decomposition."""
    torch.manual_seed(args.seed)
    plain = create_vit(args.vit, args.pixels)
    adapt(copy.deepcopy(plain), SomaConfig(args.rank), adapted_blocks(plain)[:1])  # warms up
    seconds, adapted = time_start(plain, args)
    error, angle = compare_with_svd(plain, adapted, args.rank)
    parts = sum(stacked_parts(plain, name) for name in select_linears(plain, adapted_blocks(plain)))
    report = Report("Start-up: adapting a ViT", vars(args))
    report.rows = [{"start": "decomposed", "seconds": seconds, "ms for each weight": 1e3 * seconds / parts}]
    if args.vit in LIMITS:
        report.limits = [Limit("seconds", seconds, LIMITS[args.vit])]
    report.limits.append(Limit("relative error of B A against the full SVD", error, 1e-3))
    report.limits.append(Limit("distance of the projectors on the spans", angle, 1e-3))
    report.notes = [f"{parts} random weights. Each third of a fused qkv counts as one weight."]
    return report


def time_start(plain: nn.Module, args: argparse.Namespace) -> tuple[float, nn.Module]:
    """The median of the seconds that adapting takes, and an adapted copy of the ViT."""
    copies = [copy.deepcopy(plain) for _ in range(args.rounds)]
    waiting = iter(copies)
    steps = {"soma": [("start", lambda: adapt(next(waiting), SomaConfig(args.rank), adapted_blocks(plain)))]}
    return interleave(steps, args.rounds, warmup=0)["soma"]["start"].median, copies[-1]


def compare_with_svd(plain: nn.Module, adapted: nn.Module, rank: int) -> tuple[float, float]:
    """The largest relative error of B A in the last block, and the largest distance of the projectors on its spans."""
    errors, angles = [], []
    for name in CHECKED:
        layer: SomaLinear = adapted.blocks[-1].get_submodule(name)
        weight = plain.blocks[-1].get_submodule(name).weight.detach().chunk(layer.parts)[0]
        u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        expected = (u[:, -rank:] * s[-rank:]) @ vh[-rank:]
        a, b = layer.a[0].detach().double(), layer.b[0].detach().double()
        errors.append(float((b @ a - expected).norm() / expected.norm()))
        angles.append(max(_distance(b, u[:, -rank:]), _distance(a.T, vh[-rank:].T)))
    return max(errors), max(angles)


def _distance(x: Tensor, y: Tensor) -> float:
    """Spectral norm of the difference of the projectors on the columns: the sine of the largest angle between them."""
    q, p = torch.linalg.qr(x)[0], torch.linalg.qr(y)[0]
    return float(torch.linalg.matrix_norm(q - p @ (p.T @ q), 2))
