#!/usr/bin/env python
"""Measure what adaptation costs, beside its alternatives: see --help, or run

python projects/Benchmarks/benchmark.py train
"""

import argparse
import os

# Idle OpenMP threads spin by default: beside one busy core all takes 1.5 times as long. Alone, waiting costs a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
from benchmarks import data, determinism, evaluation, evaluation_memory, heads, infer, init, long, overfit, train

BENCHMARKS = {
    "train": train,
    "infer": infer,
    "init": init,
    "data": data,
    "eval": evaluation,
    "overfit": overfit,
    "heads": heads,
    "determinism": determinism,
    "long": long,
    "evaluation_memory": evaluation_memory,
}
ROUNDS = {"train": 15, "infer": 15, "init": 3, "data": 9, "eval": 1, "overfit": 1, "heads": 12, "determinism": 60}
ROUNDS |= {"long": 1, "evaluation_memory": 1}  # which measure once, whatever is given
EXAMPLES = """
Training step of ViT-S at 384 pixels, all contestants (the default):
    python projects/Benchmarks/benchmark.py train

The smaller ViT, the contestants of the limits only, more rounds:
    python projects/Benchmarks/benchmark.py train --vit ti --pixels 256 --contestants biases soma peft_lora --rounds 60

A whole detector, and the recipe's image size on a GPU:
    python projects/Benchmarks/benchmark.py train --detector
    python projects/Benchmarks/benchmark.py train --vit l --pixels 1024 --device cuda --dtype bfloat16

Inference after merging, start-up of ViT-L, data loading, and the COCO metric:
    python projects/Benchmarks/benchmark.py infer
    python projects/Benchmarks/benchmark.py init --vit l
    python projects/Benchmarks/benchmark.py data
    python projects/Benchmarks/benchmark.py eval --output output/benchmark/eval.json

A trained detector by eager torch, torch.compile, onnxruntime and OpenVINO, in fp32 and int8, and what AP each has:
    python projects/Benchmarks/benchmark.py infer --run output/demo --images 60

Whether each detection head can learn ten images by heart (half an hour and more; goes on after an interruption):
    python projects/Benchmarks/benchmark.py overfit

The demo with each head for equal time, three seeds (three hours; goes on after an interruption):
    python projects/Benchmarks/benchmark.py heads

The demo's training step with and without SOLVER.DETERMINISTIC:
    python projects/Benchmarks/benchmark.py determinism

Whether memory, iteration time or files grow in a long training, and memory with the number of images evaluated:
    python projects/Benchmarks/benchmark.py long --iterations 2000 --chart output/benchmark/long.png
    python projects/Benchmarks/benchmark.py evaluation_memory --images 500 5000

Contestants take turns in one process, in random order. Times are medians over rounds, and a ratio is the median of the
rounds' ratios. The figures are printed as a table and written as JSON. The others take minutes at most.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description="Speed and memory.", epilog=f"Examples:\n{EXAMPLES}", formatter_class=formatter
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="{" + ",".join(BENCHMARKS) + "}")
    for name, module in BENCHMARKS.items():
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        command.add_argument("--rounds", type=int, default=ROUNDS[name], help="default: %(default)s")
        command.add_argument("--seed", type=int, default=0, help="of weights, images and order (default: %(default)s)")
        command.add_argument("--output", help="JSON file (default: output/benchmark/<benchmark>.json)")
        if name in ("train", "infer", "init"):
            _add_model_arguments(command, name)
        module.add_arguments(command)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}: give 1 or more")
    if getattr(args, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch finds no GPU")
    return args


def _add_model_arguments(command: argparse.ArgumentParser, name: str) -> None:
    size = "l" if name == "init" else "s"
    command.add_argument("--vit", default=size, help="ti, s, b, l or a timm ViT (default: %(default)s)")
    command.add_argument("--rank", type=int, default=16, help="default: %(default)s")
    command.add_argument("--pixels", type=int, default=384, help="height and width (default: %(default)s)")
    if name == "init":
        return
    command.add_argument("--batch", type=int, default=2, help="images (default: %(default)s)")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    dtypes = ("float32", "bfloat16", "float16")
    command.add_argument("--dtype", choices=dtypes, default="float32", help="of autocast (default: %(default)s)")
    command.add_argument("--compile", action="store_true", help="with torch.compile")


def main(argv: list[str] | None = None) -> None:
    """Run a benchmark, print its table and write its JSON file."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    output = args.output or f"output/benchmark/{args.benchmark}.json"
    report = BENCHMARKS[args.benchmark].run(args)
    report.save(output)
    print(f"{report.text()}\n\nAlso in {output}.")


if __name__ == "__main__":
    main()
