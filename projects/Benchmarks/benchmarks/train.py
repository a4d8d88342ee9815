"""Step time and memory of training: the backbone alone, or a whole detector."""

import argparse
import copy
from collections.abc import Callable

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.contestants import CONTESTANTS, FLOOR, PEFT_LORA, SOMA, adapt, available, create_vit
from benchmarks.detector import build_detector, random_images
from benchmarks.report import Limit, Report
from benchmarks.timing import Timing, cpu_ratio, interleave, ratio
from soma_det.modeling.backbone.timm_vit import TimmViT

# (size, pixels, device, dtype) -> upper limit of SoMA / floor, lower limit of peft's LoRA / SoMA
LIMITS = {
    ("s", 384, "cpu", "float32"): (1.12, 1.10),
    ("ti", 256, "cpu", "float32"): (1.18, 1.20),
    ("l", 1024, "cuda", "bfloat16"): (1.10, 1.25),
}
STEP, OPTIMIZER = "forward and backward", "optimizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detector", action="store_true", help="a Faster R-CNN, not the backbone alone")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), metavar="NAME", help="%(default)s")


def run(args: argparse.Namespace) -> Report:
    """Time every contestant."""
    models = build_models(args)
    steps = {name: _step(model, name, args) for name, model in models.items()}
    memory = {name: _memory(model, steps[name][0][1], args.device) for name, model in models.items()}
    timings = interleave(steps, args.rounds, warmup=2, device=args.device, seed=args.seed)
    report = Report("Training step of a detector" if args.detector else "Training step of the backbone", vars(args))
    report.rows = [_row(name, timings, memory[name], args.device) for name in models]
    report.limits = _limits(timings, memory, args)
    report.notes = _notes(args)
    return report


def build_models(args: argparse.Namespace) -> dict[str, nn.Module]:
    """Contestant -> model in training mode. Shared weights are the same in all."""
    torch.manual_seed(args.seed)
    plain = build_detector(args.vit, args.pixels) if args.detector else create_vit(args.vit, args.pixels)
    models = {}
    for name in available(args.contestants):
        model = copy.deepcopy(plain)
        vit = model.backbone.net.model if args.detector else model
        adapt(vit, name, args.rank)
        model = model if args.detector else TimmViT(model, [-1])
        if args.compile:
            (model.backbone.net if args.detector else model).compile()
        models[name] = model.to(args.device).train()
    return models


def _step(model: nn.Module, name: str, args: argparse.Namespace) -> list[tuple[str, Callable]]:
    inputs = random_images(args.batch, args.pixels, args.seed, labeled=args.detector)
    if not args.detector:
        inputs = torch.stack([image["image"] for image in inputs]).float().div(255).to(args.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6) if parameters else None
    dtype = getattr(torch, args.dtype)

    def forward_and_backward():
        with EventStorage(), torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
            output = model(inputs)
            loss = sum(output.values()) if args.detector else next(iter(output.values())).square().mean()
        if loss.requires_grad:
            loss.backward()

    def update():
        if optimizer:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return [(STEP, forward_and_backward), (OPTIMIZER, update)]


def _memory(model: nn.Module, step: Callable, device: str) -> float:
    """MiB: on a GPU the peak of a step with the model, on a CPU what is kept for the backward pass."""
    step()  # gradients, and what is allocated once
    if device == "cuda":
        for parameter in model.parameters():
            parameter.grad = None  # so that the peak has the gradients in it
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        own = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        return (torch.cuda.max_memory_allocated() - before + own) / 2**20
    kept = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values()) / 2**20


def _row(name: str, timings: dict[str, dict[str, Timing]], memory: float, device: str) -> dict:
    step, floor = timings[name][STEP], timings.get(FLOOR, timings[name])[STEP]
    low, high = step.quartiles
    return {
        "contestant": name,
        "step ms": 1e3 * step.median,
        "quartiles ms": f"{1e3 * low:.4g} to {1e3 * high:.4g}",
        "CPU ms": 1e3 * step.cpu_median,
        "against floor": ratio(step, floor),
        "by CPU time": cpu_ratio(step, floor),
        "optimizer ms": 1e3 * timings[name][OPTIMIZER].median,
        "peak MiB" if device == "cuda" else "kept for backward MiB": memory,
    }


def _limits(timings: dict, memory: dict[str, float], args: argparse.Namespace) -> list[Limit]:
    known = LIMITS.get((args.vit, args.pixels, args.device, args.dtype))
    if known is None or args.detector or not {FLOOR, SOMA, PEFT_LORA} <= timings.keys():
        return []
    soma, floor, lora = (timings[name][STEP] for name in (SOMA, FLOOR, PEFT_LORA))
    limits = [Limit("SoMA against training the biases", ratio(soma, floor), known[0])]
    limits.append(Limit("peft's LoRA against SoMA", ratio(lora, soma), known[1], at_most=False))
    if args.device == "cuda":
        limits.append(Limit("peak memory against peft's LoRA", memory[SOMA] / memory[PEFT_LORA], 1.0))
    return limits


def _notes(args: argparse.Namespace) -> list[str]:
    memory = (
        "Peak MiB: of a step, with the contestant's weights."
        if args.device == "cuda"
        else "Kept for backward: what autograd saves, without weights, each storage counted once; not a peak."
    )
    frozen = "" if args.detector else " Frozen has no backward pass."
    return [f"A step is forward and backward; the floor trains the biases of the same layers.{frozen} {memory}"]
