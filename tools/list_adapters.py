#!/usr/bin/env python
"""List the methods of MODEL.ADAPTER.NAME and how many parameters of a ViT each trains, for example

    python tools/list_adapters.py --vit vit_large_patch14_dinov2 --frozen-blocks 8 --rank 16

Nothing is downloaded or computed: the model is built without storage.
"""

import argparse
import importlib.util
from dataclasses import fields
from typing import Any

import timm
import torch

from soma_det.adapters import ADAPTERS, adapt
from soma_det.adapters.peft_methods import PeftConfig


def count_trained(name: str, vit_name: str, frozen_blocks: int, rank: int, **options: Any) -> int:
    """Number of parameters of a timm ViT at patch 16 that the method trains; ``options`` are further settings of it."""
    method = ADAPTERS[name]
    if "rank" in {field.name for field in fields(method)}:
        options["rank"] = rank
    config = method(**options)
    with torch.device("meta"):
        vit = timm.create_model(vit_name, num_classes=0, img_size=64, patch_size=16, dynamic_img_size=True)
        adapt(vit, config, config.usual_blocks(frozen_blocks, len(vit.blocks) - 1), initialize=False)
    return sum(parameter.numel() for parameter in vit.parameters() if parameter.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description="Parameters that each adapter trains in a ViT.")
    parser.add_argument("--vit", default="vit_large_patch14_dinov2", help="a timm ViT (default: %(default)s)")
    parser.add_argument("--frozen-blocks", type=int, default=8, help="MODEL.VIT.FROZEN_BLOCKS (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="MODEL.ADAPTER.RANK (default: %(default)s)")
    args = parser.parse_args()
    has_peft = importlib.util.find_spec("peft") is not None
    for name, method in sorted(ADAPTERS.items()):
        if issubclass(method, PeftConfig) and not has_peft:
            continue
        count = count_trained(name, args.vit, args.frozen_blocks, args.rank)
        mergeable = "not mergeable" if method.why_not_mergeable else "mergeable"
        print(f"{name:<12} {count:>12,}  {mergeable:<14} {method.summary}")


if __name__ == "__main__":
    main()
