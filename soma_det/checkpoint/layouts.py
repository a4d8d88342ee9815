"""Weights of DINOv2 and DINOv3 in the layouts that they are published in, under timm's names.

Meta's files are translated by timm's own filters; Hugging Face's first get Meta's names. For checkpoints of SoMA and of
Rein, which hold what was trained beside them, see :mod:`soma_det.checkpoint.released`.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from soma_det.checkpoint.released import Converted, State, adapter_of_rein, merge_soma

# A key, or several, that only this layout has.
MARKS = {
    "soma": r"backbone\.model\.blocks\.\d+\..*\.lora_A\.weight",
    "rein": r"backbone\.reins\..*",
    "dinov2_hf": r"embeddings\.position_embeddings",
    "dinov3_hf": r"(model\.)?layer\.0\.attention\.q_proj\.weight",
    "dinov3_meta": r"storage_tokens",
    "dinov2_meta": r"mask_token",
}
WRAPPERS = ("state_dict", "model", "teacher")  # keys of training checkpoints under which the weights are
# Hugging Face's names, of transformers 4 and 5, in Meta's.
HF_PREFIX = r"^(dinov2_with_registers|dinov2|dinov3_vit)\."
HF_NAMES = {
    r"^embeddings\.patch_embeddings\.(projection\.)?": "patch_embed.proj.",
    r"^embeddings\.position_embeddings": "pos_embed",
    r"^embeddings\.": "",
    r"^(encoder\.|model\.)?layer\.": "blocks.",
    r"^layernorm\.": "norm.",
    r"\.layer_scale([12])\.lambda1": r".ls\1.gamma",
    r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.": r".attn.\2.",
    r"\.attention\.(output\.dense|o_proj)\.": ".attn.proj.",
    r"\.mlp\.weights_in\.": ".mlp.w12.",
    r"\.mlp\.weights_out\.": ".mlp.w3.",
}
SIZES = {384: "small", 768: "base", 1024: "large", 1280: "huge_plus", 1536: "giant", 4096: "7b"}  # by width


def unwrap(checkpoint: Mapping[str, Any]) -> State:
    """The weights inside a training checkpoint, or of a plain state dict."""
    inside = next((checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    return {key: tensor for key, tensor in inside.items() if isinstance(tensor, Tensor)}


def find_layout(state: Mapping[str, Tensor]) -> str:
    """The layout of a state dict by its names.

    Raises:
        ValueError: it is of none that is known.
    """
    names = [re.sub(HF_PREFIX, "", key) for key in state]
    for layout, mark in MARKS.items():
        if any(re.fullmatch(mark, name) for name in names):
            return layout
    raise ValueError(
        f"The layout is not one of {sorted(MARKS)}: there are {len(state)} weights with names such as "
        f"{sorted(state)[:5]}. Weights with timm's names need no conversion: give them as MODEL.VIT.WEIGHTS."
    )


def convert(state: State, layout: str = "auto", base: State | None = None) -> Converted:
    """The weights of a state dict under timm's names.

    Args:
        layout: one of MARKS, or "auto" to tell it by the names.
        base: for "soma" and "rein": the pretrained DINOv2 under timm's names.

    Raises:
        ValueError: the layout is unknown or another one, weights are missing or left over, or the base does not fit.
    """
    found = find_layout(state)
    if layout not in ("auto", found):
        raise ValueError(
            f"The layout is {layout!r}, and the names are those of {found!r}, such as {sorted(state)[:5]}."
        )
    if found in ("soma", "rein"):
        if base is None:
            raise ValueError(
                f"A checkpoint of the layout {found!r} holds no pretrained weights: give them with --base."
            )
        return merge_soma(state, base) if found == "soma" else adapter_of_rein(state, base)
    state = {key: tensor.float() for key, tensor in state.items()}
    if found.endswith("_hf"):
        state = _meta_names(state, "register_tokens" if found == "dinov2_hf" else "storage_tokens")
    return _from_meta(state, found.removesuffix("_hf").removesuffix("_meta"))


def _meta_names(state: State, registers: str) -> State:
    """Meta's names for Hugging Face's; q, k and v joined, whose missing biases are zero."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(HF_PREFIX, "", key)
        for pattern, name in HF_NAMES.items():
            key = re.sub(pattern, name, key)
        renamed[key.replace("register_tokens", registers)] = tensor
    renamed.setdefault("mask_token", torch.zeros(1))  # by which timm's filter knows DINOv2
    gated = {key.replace(".gate_proj.", ".") for key in renamed if ".gate_proj." in key}
    joined: State = {}
    for key, tensor in renamed.items():
        if re.search(r"\.attn\.[qkv]\.", key):
            key = re.sub(r"\.attn\.[qkv]\.", ".attn.{}.", key)
            zero = torch.zeros_like(tensor)
            joined[key.format("qkv")] = torch.cat([renamed.get(key.format(part), zero) for part in "qkv"])
        else:
            joined[key] = tensor
    return _mlp_names(joined, gated, packed=registers == "register_tokens")


def _mlp_names(state: State, gated: set[str], packed: bool) -> State:
    """Meta's names for gate, up and down projections: w1, w2, w3, of which DINOv2 packs the first two."""
    names = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"} if gated else {"up_proj": "fc1", "down_proj": "fc2"}
    for old, new in names.items():
        state = {key.replace(f".mlp.{old}.", f".mlp.{new}."): tensor for key, tensor in state.items()}
    for key in [key for key in state if packed and ".mlp.w1." in key]:
        state[key.replace("w1", "w12")] = torch.cat([state.pop(key), state.pop(key.replace("w1", "w2"))])
    return state


def _from_meta(state: State, family: str) -> Converted:
    """timm's names for Meta's, by timm's own filter for a model of the same size."""
    biases = [tensor.chunk(3) for key, tensor in state.items() if key.endswith("qkv.bias")]
    biased = any(q.any() or v.any() for q, _, v in biases)
    if family == "dinov3" and not biased:  # timm has such models without these biases
        state = {key: tensor for key, tensor in state.items() if not key.endswith("qkv.bias")}
    name, sketch = _sketch(state, family, biased)
    translate = sys.modules[type(sketch).__module__].checkpoint_filter_fn
    tensors = {key: tensor.contiguous() for key, tensor in translate(dict(state), sketch).items()}
    own = {key: tensor.shape for key, tensor in sketch.state_dict().items()}
    wrong = [key for key in {**own, **tensors} if getattr(tensors.get(key), "shape", None) != own.get(key)]
    if wrong:
        raise ValueError(
            f"The weights are not those of a {family}: {len(wrong)} are missing, left over or of another shape, "
            f"such as {sorted(wrong)[:5]}."
        )
    return Converted(tensors, {}, f"MODEL.VIT.NAME {name}")


def _sketch(state: State, family: str, biased: bool) -> tuple[str, Any]:
    """timm's name for a model with these weights under Meta's names, and the model without storage."""
    missing = {"cls_token", "patch_embed.proj.weight", *(["pos_embed"] if family == "dinov2" else [])} - state.keys()
    if missing or not any(key.startswith("blocks.0.mlp.") for key in state):
        raise ValueError(
            f"The weights are not those of a {family}: there is no {sorted(missing) or 'blocks.0.mlp'}, but names such "
            f"as {sorted(state)[:5]}."
        )
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    gate = next((state[key] for key in ("blocks.0.mlp.w12.weight", "blocks.0.mlp.w1.weight") if key in state), None)
    hidden = (gate if gate is not None else state["blocks.0.mlp.fc1.weight"]).shape[0]
    options: dict[str, Any] = dict(embed_dim=width, depth=depth, num_heads=max(1, width // 64), patch_size=patch)
    options |= {"num_classes": 0, "global_pool": "token", "mlp_ratio": (hidden + 0.5) / width}  # rounded down
    size = SIZES.get(width, f"width{width}")
    if family == "dinov2":
        registers = "reg4_" if "register_tokens" in state else ""
        side = patch * round((state["pos_embed"].shape[1] - 1) ** 0.5)
        name, kind = f"vit_{size}_patch14_{registers}dinov2", "giant" if gate is not None else "small"
        like, options = f"vit_{kind}_patch14_{registers}dinov2", options | {"img_size": side}
    else:
        plus = "_plus" if gate is not None and size == "small" else ""
        bias = "_qkvb" if biased else ""
        name = f"vit_{size}{plus}_patch16_dinov3{bias}"
        like = f"vit_small{'_plus' if gate is not None else ''}_patch16_dinov3{bias}"
        options["swiglu_align_to"] = 1  # the gated layers are then as wide as they are
    with torch.device("meta"):
        return name, timm.create_model(like, **options)
