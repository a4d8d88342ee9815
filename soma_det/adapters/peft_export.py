"""Adapter files as folders that Hugging Face's peft loads."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from soma_det.adapters.base import require
from soma_det.adapters.files import read_adapter

PREFIX = "base_model.model"


def export_to_peft(path: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Write an adapter file as a folder for ``PeftModel.from_pretrained(vit, folder)``, with equal outputs.

    peft takes a fused qkv as one weight, so its three changes become one of three times the rank. Biases that were
    trained are in the folder too.

    Args:
        path: of :func:`~soma_det.adapters.save_adapter`.
        folder: made if it does not exist.

    Raises:
        ValueError: the adapter is not a low-rank change of linear layers, so peft's LoRA cannot hold it.
    """
    tensors, metadata = read_adapter(path)
    require(
        metadata["kind"] == "low_rank",
        f"{path} is an adapter of the method {metadata['method']!r}, which is not LoRA in form: peft cannot load it.",
    )
    bypassed = json.loads(metadata["read_directly"])
    require(not bypassed, f"{path} changes {bypassed}, which the attention reads directly: peft would change nothing.")
    layers = sorted(name.removesuffix(".a") for name in tensors if name.endswith(".a"))
    ranks = {name: tensors[f"{name}.a"].shape[0] * tensors[f"{name}.a"].shape[1] for name in layers}
    biases = {name: t for name, t in tensors.items() if not name.endswith((".a", ".b"))}
    weights = {}
    for name in layers:
        weights[f"{PREFIX}.{name}.lora_A.weight"] = tensors[f"{name}.a"].flatten(0, 1).contiguous()
        weights[f"{PREFIX}.{name}.lora_B.weight"] = block_diagonal(tensors[f"{name}.b"])
    for name, tensor in biases.items():
        layer, _, parameter = name.rpartition(".")
        weights[f"{PREFIX}.{layer}.base_layer.{parameter}"] = tensor
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    config = _peft_config(ranks, metadata["base"], bool(biases))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def block_diagonal(b: Tensor) -> Tensor:
    """(parts, out / parts, rank) -> (out, parts rank), zero off the diagonal."""
    return torch.block_diag(*b).contiguous()


def _peft_config(ranks: dict[str, int], base: str, biases: bool) -> dict[str, object]:
    first = next(iter(ranks.values()))
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": first,
        "lora_alpha": first,  # alpha / r is the scale, which is 1
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "bias": "all" if biases else "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
