#!/usr/bin/env python
"""Export a checkpoint without the pretrained weights: see --help, or run

python tools/export_adapter.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth
"""

import argparse
import os
import sys
from pathlib import Path

# OpenMP's threads would wait busily for each other, which slows everything down beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
from soma_det.adapters import export_to_peft, save_adapter
from soma_det.checkpoint.exported import export_detector
from soma_det.config import setup_cfg
from soma_det.engine import load_model
from soma_det.modeling.backbone.build import create_pretrained
from soma_det.modeling.backbone.timm_vit import find_vits

EXAMPLES = """
Examples:

The adapter and the heads of a detector, some MB, beside the checkpoint:
    python tools/export_adapter.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth

Evaluate it; MODEL.VIT.WEIGHTS of the config brings the pretrained weights:
    python tools/train_net.py --config-file output/demo/config.yaml --eval-only \\
        MODEL.WEIGHTS output/demo/detector.safetensors OUTPUT_DIR output/demo_eval

The adapter of the ViT alone, for soma_det.adapters.load_adapter, and as a folder for Hugging Face's peft:
    python tools/export_adapter.py --config-file output/demo/config.yaml --weights output/demo/model_final.pth \\
        --vit-only --output output/demo/adapter.safetensors --peft output/demo/peft

On another machine all of these work on the same pretrained weights, and on no others: their hash is in the file.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write what a training has added to the pretrained weights: adapter and heads.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config.yaml of the run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a checkpoint (.pth) of the run")
    parser.add_argument("--output", metavar="FILE", help="default: detector.safetensors beside the checkpoint")
    parser.add_argument("--vit-only", action="store_true", help="leave out pyramid and heads")
    parser.add_argument("--peft", metavar="FOLDER", help="with --vit-only: also a folder that peft loads")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args(argv)
    if args.peft and not args.vit_only:
        parser.error("--peft needs --vit-only, since peft knows nothing of the heads")
    name = "adapter.safetensors" if args.vit_only else "detector.safetensors"
    args.output = args.output or str(Path(args.weights).with_name(name))
    return args


def main(args: argparse.Namespace) -> None:
    """Export what the command line names."""
    cfg = setup_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu"])
    model, base = load_model(cfg), load_base(cfg)
    if not args.vit_only:
        export_detector(model, args.output, base)
        return
    (vit,) = find_vits(model).values()
    save_adapter(vit.model, args.output, base)
    if args.peft:
        export_to_peft(args.output, args.peft)


def load_base(cfg: CfgNode):
    """The plain timm model with the pretrained weights of the config."""
    return create_pretrained(cfg, cfg.MODEL.VIT.WEIGHTS)


if __name__ == "__main__":
    arguments = parse_args()
    setup_logger(name="soma_det", abbrev_name="soma")
    try:
        main(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"export_adapter.py: error: {error}")
    print(f"Wrote {arguments.output} ({os.path.getsize(arguments.output) / 1e6:.1f} MB).")
