#!/usr/bin/env python
"""Bring published weights to timm's names: see --help, or run

python tools/convert_weights.py dinov2_vitb14_pretrain.pth dinov2_b.safetensors
"""

import argparse
import os
import sys

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
from soma_det.checkpoint.layouts import MARKS, Converted, State, convert, find_layout, unwrap
from soma_det.checkpoint.pickled import read_model_zoo
from soma_det.utils.files import atomic_path

EXAMPLES = """
Layouts: "dinov2_meta" and "dinov3_meta" are Meta's .pth files, "dinov2_hf" and "dinov3_hf" the model.safetensors of
Hugging Face's transformers, "soma" and "rein" the checkpoints that the authors of SoMA and of Rein have released.

Examples:

DINOv2 or DINOv3, from Meta or from Hugging Face; then set MODEL.VIT.NAME and MODEL.VIT.WEIGHTS as it says:
    python tools/convert_weights.py dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth dinov3_b.safetensors
    python tools/convert_weights.py dinov2-base/model.safetensors dinov2_b.safetensors

A ViT that SoMA has fine-tuned, merged into the DINOv2 that it started from:
    python tools/convert_weights.py best.pth soma_l.safetensors --base dinov2_vitl14_pretrain.pth

Rein's tokens as an adapter for soma_det.adapters.load_adapter:
    python tools/convert_weights.py rein.pth rein_l.safetensors --base dinov2_vitl14_pretrain.pth

A .pkl file of Detectron2's model zoo, for MODEL.WEIGHTS; it is read without running anything that it names:
    python tools/convert_weights.py model_final_280758.pkl model_final.pth

Weights keep their license: what comes from DINOv3 may only be passed on with the DINOv3 License.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write DINOv2's, DINOv3's, SoMA's or Rein's weights under timm's names.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help=".pth, .pt, .bin, .safetensors, or .pkl of Detectron2")
    parser.add_argument("target", metavar="OUT", help=".safetensors; .pth from .pkl")
    parser.add_argument("--layout", default="auto", choices=["auto", *sorted(MARKS)], help="default: by the names")
    parser.add_argument("--base", metavar="FILE", help="pretrained DINOv2 that SoMA or Rein was trained on, any layout")
    args = parser.parse_args(argv)
    suffix = ".pth" if args.source.endswith(".pkl") else ".safetensors"
    if not args.target.endswith(suffix):
        parser.error(f"OUT is {args.target}: give it the suffix {suffix}")
    return args


def read(path: str) -> State:
    """The weights in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a file of weights alone.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return unwrap(torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except Exception as error:  # pickle's own kinds: torch reads nothing but weights here
        raise ValueError(f"{path} holds more than weights, and would have to run code to load: {error}") from error


def read_base(path: str) -> State:
    """As :func:`read`, under timm's names."""
    state = read(path)
    timms_own = "blocks.0.attn.qkv.weight" in state and not {"mask_token", "storage_tokens"} & state.keys()
    return state if timms_own else convert(state).tensors


def convert_model_zoo(source: str, target: str) -> int:
    """Write a .pkl file of Detectron2 as a .pth file; returns the number of weights."""
    tensors, rest = read_model_zoo(source)
    with atomic_path(target) as temporary:
        torch.save({"model": tensors, **rest}, temporary)
    return len(tensors)


def main(args: argparse.Namespace) -> tuple[str, Converted]:
    """Convert the file that the command line names; returns its layout and what was written."""
    state = read(args.source)
    converted = convert(state, args.layout, read_base(args.base) if args.base else None)
    with atomic_path(args.target) as temporary:
        save_file(
            {key: tensor.contiguous() for key, tensor in converted.tensors.items()}, temporary, converted.metadata
        )
    return find_layout(state), converted


if __name__ == "__main__":
    arguments = parse_args()
    try:
        if arguments.source.endswith(".pkl"):
            count = convert_model_zoo(arguments.source, arguments.target)
            print(f"Wrote {arguments.target}: {count} weights, for MODEL.WEIGHTS.")
            sys.exit()
        layout, written = main(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"convert_weights.py: error: {error}")
    print(f"Wrote {arguments.target}: {len(written.tensors)} weights from the layout {layout}, for {written.purpose}.")
    if layout.startswith("dinov3"):
        print("They may be used and passed on under the DINOv3 License alone; so may what is trained from them.")
