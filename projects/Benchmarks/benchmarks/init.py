"""Start-up: decomposing a ViT, and doing without thanks to the cache."""

import argparse
import copy
import tempfile

import torch
from benchmarks.contestants import adapted_blocks, create_vit
from benchmarks.report import Limit, Report
from benchmarks.timing import interleave
from torch import Tensor, nn

from soma_det.adapters.selection import select_linears, stacked_parts
from soma_det.adapters.soma import SomaLinear, inject_soma

FRESH, CACHED = "decomposed", "from the cache"
LIMITS = {"l": (25.0, 2.0)}  # seconds on two cores
CHECKED = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of the last block


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> Report:
    """Time both ways of adapting a ViT; hold some weights against the full decomposition."""
    torch.manual_seed(args.seed)
    plain = create_vit(args.vit, args.pixels)
    with tempfile.TemporaryDirectory() as folder:
        inject_soma(copy.deepcopy(plain), args.rank, adapted_blocks(plain)[:1], cache=folder)  # warms up
        fresh = _time({FRESH: plain}, args, folder, 1)
        cached = _time({CACHED: plain}, args, folder, args.rounds)
        adapted = copy.deepcopy(plain)
        inject_soma(adapted, args.rank, adapted_blocks(adapted), cache=folder)
    error, angle = compare_with_svd(plain, adapted, args.rank)
    seconds = {**fresh, **cached}
    parts = sum(stacked_parts(name) for name in select_linears(plain, adapted_blocks(plain)))
    report = Report("Start-up: adapting a ViT", vars(args))
    report.rows = [{"start": name, "seconds": s, "ms for each weight": 1e3 * s / parts} for name, s in seconds.items()]
    if args.vit in LIMITS:
        report.limits = [Limit(f"seconds, {n}", s, m) for (n, s), m in zip(seconds.items(), LIMITS[args.vit])]
    report.limits.append(Limit("relative error of B A against the full SVD", error, 1e-3))
    report.limits.append(Limit("distance of the projectors on the spans", angle, 1e-3))
    report.notes = [f"{parts} weights, each third of a fused qkv being one; random ones."]
    return report


def compare_with_svd(plain: nn.Module, adapted: nn.Module, rank: int) -> tuple[float, float]:
    """The largest relative error of B A, and distance of the projectors on its rows and columns, in the last block."""
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


def _time(models: dict[str, nn.Module], args: argparse.Namespace, folder: str, rounds: int) -> dict[str, float]:
    def start(model: nn.Module) -> None:
        inject_soma(model, args.rank, adapted_blocks(model), cache=folder)

    steps = {}
    for name, model in models.items():
        copies = iter([copy.deepcopy(model) for _ in range(rounds)])
        steps[name] = [("start", lambda copies=copies: start(next(copies)))]
    return {name: parts["start"].median for name, parts in interleave(steps, rounds, warmup=0).items()}
