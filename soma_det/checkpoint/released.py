"""What the authors of SoMA and of Rein have released: trained weights beside a pretrained DINOv2, which comes apart."""

import json
import re
from dataclasses import asdict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from soma_det.adapters.files import FORMAT, base_sha256
from soma_det.adapters.rein import ReinConfig
from soma_det.utils.vit_weights import IMG_SIZE

State = dict[str, Tensor]
PATCH, GRID = 16, 64  # what the authors' scripts make of DINOv2's patches of 14 pixels and 37 x 37 positions


class Converted(NamedTuple):
    """Tensors and metadata of a .safetensors file, and what the file is for."""

    tensors: State
    metadata: dict[str, str]
    purpose: str


def merge_soma(state: State, base: State) -> Converted:
    """W + B A for the adapted weights and the trained biases, on DINOv2 resampled as by the authors' scripts.

    Source: ysj9909/SoMA. The sum is with the original weight, not with the residual of the decomposition.
    """
    merged, backbone = _resample(base), _below(state, "backbone.model.")
    for layer in sorted(key.removesuffix(".lora_A.weight") for key in backbone if key.endswith(".lora_A.weight")):
        change = backbone[f"{layer}.lora_B.weight"] @ backbone[f"{layer}.lora_A.weight"]
        _part(merged, f"{layer}.weight", change.shape).add_(change)
    for key in sorted(key for key in backbone if key.endswith(".bias")):
        _part(merged, key, backbone[key].shape).copy_(backbone[key])
    return Converted(merged, {IMG_SIZE: json.dumps([PATCH * GRID] * 2)}, "MODEL.VIT.NAME of the base")


def _part(state: State, key: str, shape: torch.Size) -> Tensor:
    """The tensor of this name; of ``attn.q``, ``attn.k`` and ``attn.v`` the rows of ``attn.qkv``."""
    part = re.search(r"\.attn\.([qkv])\.", key)
    tensor = state.get(re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", key))
    if tensor is not None and part:
        tensor = tensor.chunk(3)["qkv".index(part[1])]
    if tensor is None or tensor.shape != shape:
        raise ValueError(f"The base has no {key} of the shape {list(shape)}: give the DINOv2 of the training.")
    return tensor


def _resample(base: State) -> State:
    """A copy with patches of 16 pixels and 64 x 64 positions, both by plain bicubic interpolation."""
    merged = {key: tensor.float().clone() for key, tensor in base.items()}
    if "reg_token" in base or "pos_embed" not in base:
        raise ValueError("The base is not a DINOv2 without registers, on which SoMA was trained: give that one.")
    patches, positions = merged["patch_embed.proj.weight"], merged["pos_embed"]
    merged["patch_embed.proj.weight"] = F.interpolate(patches, size=PATCH, mode="bicubic", align_corners=False)
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size=GRID, mode="bicubic", align_corners=False)
    merged["pos_embed"] = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    return merged


def adapter_of_rein(state: State, base: State) -> Converted:
    """Rein's tokens and shared layers as a saved adapter; its links to the queries of a segmentation head are left out.

    Source: w1oves/Rein.
    """
    own = _below(state, "backbone.reins.")
    if "learnable_tokens_a" not in own:
        raise ValueError(
            f"This Rein has tokens of full rank ({sorted(own)[:3]}), and the adapter 'rein' has tokens of low rank: "
            "convert a checkpoint with learnable_tokens_a and learnable_tokens_b."
        )
    a, b = own["learnable_tokens_a"], own["learnable_tokens_b"]
    depth = 1 + max(int(key.split(".")[1]) for key in base if key.startswith("blocks."))
    if a.shape[0] != depth or b.shape[2] != base["cls_token"].shape[-1]:
        raise ValueError(
            f"The tokens are for {a.shape[0]} blocks of width {b.shape[2]}, and the base has {depth} blocks of width "
            f"{base['cls_token'].shape[-1]}: give the DINOv2 that it was trained on."
        )
    tensors = {f"blocks.{i}.tokens_{part}": t[i].clone() for part, t in (("a", a), ("b", b)) for i in range(depth)}
    for old, new in (("mlp_token2feat", "token_to_feature"), ("mlp_delta_f", "refine")):
        tensors |= {f"rein.{new}.{part}": own[f"{old}.{part}"] for part in ("weight", "bias")}
    tensors["rein.scale"] = own["scale"].reshape(())
    metadata = {"format": FORMAT, "base": "the base of the conversion", "base_sha256": base_sha256(base)}
    metadata |= {"kind": "tensors", "method": "rein", "blocks": json.dumps(list(range(depth))), "targets": "[]"}
    metadata |= {"config": json.dumps(asdict(ReinConfig(a.shape[1], a.shape[2]))), "read_directly": "[]"}
    return Converted(tensors, metadata, "soma_det.adapters.load_adapter")


def _below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): tensor.float() for key, tensor in state.items() if key.startswith(prefix)}
