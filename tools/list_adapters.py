#!/usr/bin/env python
"""List the methods of MODEL.ADAPTER.NAME and how many parameters of a ViT each trains, for example

    python tools/list_adapters.py --vit vit_large_patch14_dinov2 --frozen-blocks 8 --rank 16

Nothing is downloaded or computed: the model is built without storage.
"""

import argparse

import soma_det  # noqa: F401  (first: makes Detectron2 importable without its compiled extension)
import timm
import torch

from soma_det.adapters import ADAPTERS, inject_adapter


def count_trained(name: str, vit_name: str, frozen_blocks: int, rank: int, **options) -> int:
    """Number of parameters of a timm ViT at patch 16 that the adapter trains; ``options`` are further ones of it."""
    adapter = ADAPTERS[name]
    with torch.device("meta"):
        vit = timm.create_model(vit_name, num_classes=0, img_size=64, patch_size=16, dynamic_img_size=True)
        blocks = adapter.usual_blocks(frozen_blocks, len(vit.blocks) - 1)
        if "rank" in adapter.options:
            options["rank"] = rank
        inject_adapter(vit, name, blocks, **options)
    return sum(parameter.numel() for parameter in vit.parameters() if parameter.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description="Parameters that each adapter trains in a ViT.")
    parser.add_argument("--vit", default="vit_large_patch14_dinov2", help="a timm ViT (default: %(default)s)")
    parser.add_argument("--frozen-blocks", type=int, default=8, help="MODEL.VIT.FROZEN_BLOCKS (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="MODEL.ADAPTER.RANK (default: %(default)s)")
    args = parser.parse_args()
    for name, adapter in sorted(ADAPTERS.items()):
        count = count_trained(name, args.vit, args.frozen_blocks, args.rank)
        print(f"{name:<12} {count:>12,}  {'mergeable' if adapter.merge else 'not mergeable':<14} {adapter.summary}")


if __name__ == "__main__":
    main()
