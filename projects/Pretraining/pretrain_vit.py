#!/usr/bin/env python
"""Pretrain a small ViT on images without labels, to have a model to adapt where none can be downloaded.

Examples, from the root of the repository:

    python projects/Pretraining/pretrain_vit.py --images datasets/pretraining --render 4000 --output output/pretraining
    python projects/Pretraining/pretrain_vit.py --images /data/my_images --objective hog --output output/mine \\
        --minutes 30
    python projects/Pretraining/pretrain_vit.py --images /data/my_images --objective hog --output output/mine \\
        --device cuda --batch 256

Objectives: "moving" learns which objects come and go in front of a fixed camera. Its folder has images in weather/ and,
under the same names, the same views on a gray day in moment0/ (all road users), moment1/ (some have left) and moment2/
(none). "hog" and "pixels" hide patches of any images and predict their look; "distill" predicts the features that the
running average of the ViT has there.

--render N first draws N SynthDrive scenes with these moments into the folder, N / 5 in each of the five weathers. The
same command again goes on after an interruption. It writes checkpoint.pth and vit.safetensors. The latter is for
MODEL.VIT.WEIGHTS, with the --model given here as MODEL.VIT.NAME.
"""

import argparse
import logging
import math
import os
import sys
from pathlib import Path

# Idle OpenMP threads spin by default. Beside one busy core that makes a training step 1.5 times slower; waiting costs
# nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The scenes are drawn by the sibling project, which is not installed: projects run from their folders.
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "SynthDrive"))

import torch
from tqdm import tqdm

import soma_det  # noqa: F401  (makes detectron2 importable)
from pretraining.distillation import SelfDistillation
from pretraining.encoder import CropEncoder
from pretraining.images import MOMENTS, WEATHER_FOLDER, ImageStream
from pretraining.masked import MaskedAutoencoder
from pretraining.moving import MovingObjects
from pretraining.objectives import TARGETS
from pretraining.render import render_all
from pretraining.training import WEIGHTS, Pretraining
from soma_det.modeling.backbone.timm_vit import count_parameters, create_timm_vit
from soma_det.utils.machine import count_cores

PATCH = 16  # pixels

# Options that the weights depend on, besides the images: a run resumes with the same values only.
SETTINGS = ("images", "model", "img_size", "crop", "objective", "mask", "steps", "batch", "lr", "precision", "seed")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", required=True, help="folder of images, searched recursively")
    add("--render", type=int, metavar="N", help="draw N SynthDrive scenes into it first, N / 5 in each weather")
    add("--output", required=True, help="folder for the checkpoint and the weights")
    add("--model", default="vit_tiny_patch16_224", help="a timm ViT with patches of 16 pixels (default: %(default)s)")
    add(
        "--img-size",
        type=int,
        nargs=2,
        default=[288, 480],
        metavar=("H", "W"),
        help="image size of the detector, pixels",
    )
    add("--crop", type=int, nargs=2, default=[192, 320], metavar=("H", "W"), help="size of the training crops, pixels")
    add(
        "--objective",
        choices=("moving", "distill", *TARGETS),
        default="moving",
        help="what to predict (default: %(default)s)",
    )
    add(
        "--mask",
        type=float,
        default=0.75,
        help="share of hidden patches; moving hides none (default: %(default)s)",
    )
    add("--steps", type=int, default=3000, help="iterations of the whole schedule (default: %(default)s)")
    add("--minutes", type=float, default=math.inf, help="stop after this time (default: never)")
    add("--batch", type=int, default=32, help="crops per iteration (default: %(default)s)")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate of AdamW (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, images and masks (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of products (default: %(default)s)")
    add("--workers", type=int, help="processes that cut crops (default: half of the cores, on a GPU all but one)")
    add("--save-minutes", type=float, default=2.0, help="time between checkpoints (default: %(default)s)")
    return parser.parse_args(arguments)


def render(args: argparse.Namespace) -> None:
    """Draw what --render asks for."""
    for _ in tqdm(render_all(args.images, args.render, args.seed), total=args.render, unit="scene"):
        pass


def build_model(args: argparse.Namespace) -> CropEncoder:
    """A new ViT with its objective."""
    vit = create_timm_vit(args.model, "", PATCH, args.img_size)
    logging.getLogger("soma_det").info("%s: %.2f million parameters", args.model, count_parameters(vit) / 1e6)
    if args.objective == "moving":
        return MovingObjects(vit)
    if args.objective == "distill":
        return SelfDistillation(vit, args.mask)
    return MaskedAutoencoder(vit, args.objective, args.mask)


def build_stream(args: argparse.Namespace, model: CropEncoder) -> ImageStream:
    """The training images, with their moments where the objective uses them."""
    root = Path(args.images)
    missing = [folder for folder in (WEATHER_FOLDER, *MOMENTS) if not (root / folder).is_dir()]
    moments = [root / folder for folder in MOMENTS] if args.objective == "moving" else []
    if moments and missing:
        raise ValueError(
            f"{root} has no folder {', '.join(missing)}, which --objective moving needs: draw scenes into it with "
            "--render N, or use --objective hog, which learns from any images."
        )
    root = root if missing else root / WEATHER_FOLDER  # the moments are not training images
    return ImageStream(root, model.prepare, moments, batch=args.batch, crop_size=args.crop, seed=args.seed)


def count_workers(asked: int | None, device: str) -> int:
    """Number of processes that cut crops. On a CPU the training needs cores too."""
    if asked is not None:
        return asked
    return max(1, count_cores() // 2 if device == "cpu" else count_cores() - 1)


def check_device(name: str) -> None:
    """Raise a ValueError if torch cannot use the device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(
            f"--device {name} cannot be used here: {error}. Without --device an available one is used."
        ) from error


def build(args: argparse.Namespace) -> Pretraining:
    """The run that the command line describes, before its first iteration."""
    for option, sizes in (("--crop", args.crop), ("--img-size", args.img_size)):
        if any(size % PATCH for size in sizes):
            raise ValueError(f"{option} {sizes} must be multiples of {PATCH} pixels, the patch size.")
    check_device(args.device)
    if any(crop > size for crop, size in zip(args.crop, args.img_size)):
        raise ValueError(
            f"--crop {args.crop} is larger than --img-size {args.img_size}: the ViT has no positions for it."
        )
    torch.manual_seed(args.seed)
    model = build_model(args)
    stream = build_stream(args, model)
    settings = {name: getattr(args, name) for name in SETTINGS} | {"number of images": len(stream.paths)}
    return Pretraining(
        model, stream, args.output, settings,
        steps=args.steps, warmup=max(1, args.steps // 20), peak_lr=args.lr, device=args.device,
        precision=args.precision, save_period=60 * args.save_minutes, workers=count_workers(args.workers, args.device),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Pretrain as the command line says."""
    args = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if args.render is not None:
            render(args)
        training = build(args)
        training.resume()
        done = training.run(args.minutes)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pretrain_vit.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    print(
        f"{args.output}/{WEIGHTS}: iteration {training.iteration} of {args.steps}, {training.seconds / 60:.1f} minutes"
    )
    return 0 if done or args.minutes < math.inf else 130


if __name__ == "__main__":
    sys.exit(main())
