"""Adapters as files of a few MB, apart from the pretrained weights.

Minor singular vectors are nearly degenerate, so A and B differ between machines while B A hardly does. What is portable
is the change of a weight: with W_base = W_res + B0 A0 at the start and W = W_res + B A after training,

    W - W_base = B A - B0 A0 = [B, -B0] [A; A0],

a LoRA of rank 2 r on the pretrained weights, which any machine can apply. B0 A0 is W_base - W_res, a matrix of rank r,
which is factored here again, so nothing has to be remembered from the start.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from soma_det.adapters.base import ADAPTERS, AdapterLayer, LowRankForm, require
from soma_det.adapters.lora import LoraLinear
from soma_det.adapters.model import adapt, find_adapter_layers
from soma_det.adapters.selection import find_blocks, get_linear, is_read_directly, replace_module

FORMAT = "soma_det.adapter.1"
OVERSAMPLING = 8  # more random directions than the rank
PEFT_BASE = ".base_layer"  # where peft keeps the plain layer
Description = tuple[dict[str, Tensor], dict[str, str]]  # tensors, metadata


def save_adapter(model: nn.Module, path: str | os.PathLike, base: nn.Module | Mapping[str, Tensor]) -> None:
    """Write what training has made of a model, without the pretrained weights; the file is written whole or not at all.

    Args:
        model: adapted by :func:`~soma_det.adapters.adapt` and trained, not merged.
        path: a .safetensors file.
        base: the plain model with the pretrained weights that ``model`` started from, or its state dict.

    Raises:
        ValueError: nothing of the model trains, or the base does not fit it.
    """
    tensors, metadata = describe_adapter(model, base)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        temporary = Path(folder) / path.name
        temporary.write_bytes(save(tensors, metadata))
        os.replace(temporary, path)


def load_adapter(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Put a saved adapter on a plain model, in place; it then computes what the saved one did, and can train on.

    Args:
        model: plain, with the same pretrained weights as the saved adapter's.

    Returns:
        The names of the parameters that train.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a saved adapter, or one of other pretrained weights or another architecture.
    """
    return apply_adapter(model, *read_adapter(path))


def read_adapter(path: str | os.PathLike, kind: str = FORMAT) -> Description:
    """Tensors and metadata of a file of the format ``kind``; the errors are those of :func:`load_adapter`."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no adapter file {path}.")
    try:
        with safe_open(path, "pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    require(
        metadata.get("format") == kind,
        f"{path} is not a file of the format {kind!r} but of {metadata.get('format')!r}: make one with save_adapter, "
        "or for a whole detector with tools/export_adapter.py.",
    )
    return tensors, metadata


def describe_adapter(
    model: nn.Module, base: nn.Module | Mapping[str, Tensor], allow_frozen: bool = False
) -> Description:
    """What :func:`save_adapter` writes; with ``allow_frozen`` no tensors where nothing trains."""
    weights = base.state_dict() if isinstance(base, nn.Module) else base
    layers = find_adapter_layers(model)
    # What was frozen again after it had trained belongs to the adapter too.
    changed = _changed(model, layers, weights) if layers else set()
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or name in changed}
    require(
        bool(trained) or allow_frozen, "Nothing of the model trains, so there is no adapter to save: adapt it first."
    )
    metadata = {"format": FORMAT, "base": _name_of(base), "base_sha256": base_sha256(weights)}
    forms = {name: layer.low_rank_form() for name, layer in layers.items()}
    if layers and all(forms.values()):
        tensors, kind = _low_rank_tensors(forms, trained, weights), "low_rank"
    else:
        tensors, kind = trained, "tensors"
    metadata["kind"] = kind
    metadata |= _describe_layers(model, layers, weights) if layers else {"method": "parameters"}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata


def apply_adapter(model: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """As :func:`load_adapter`, for what :func:`describe_adapter` gives."""
    missing = {"base", "base_sha256", "kind", "method"} - metadata.keys()
    require(not missing, f"The adapter's file does not name its {', '.join(sorted(missing))}: it is damaged.")
    require(not find_adapter_layers(model), "The model is adapted already: merge it first, or build it again.")
    require(
        base_sha256(model) == metadata["base_sha256"],
        f"The adapter belongs to other pretrained weights ({metadata['base']}) than the model has ({_name_of(model)}): "
        "load the weights that it was trained on, or train it on these.",
    )
    if metadata["kind"] == "low_rank":
        changed = sorted(name.removesuffix(".a") for name in tensors if name.endswith(".a"))
        for name in changed:
            linear = get_linear(model, name)
            # In half precision too, B A and -B0 A0 have to cancel before anything is rounded.
            dtype = torch.promote_types(linear.weight.dtype, torch.float32)
            a, b = (tensors[f"{name}.{part}"].to(linear.weight.device, dtype) for part in "ab")
            replace_module(model, name, LoraLinear.with_change(linear, a, b))
    elif metadata["method"] != "parameters":
        _adapt_as_described(model, metadata, max((tensor.numel() for tensor in tensors.values()), default=0))
    model.requires_grad_(False)
    own = dict(model.named_parameters())
    for name, tensor in tensors.items():
        fits = name in own and own[name].shape == tensor.shape
        require(fits, f"The adapter's {name} does not fit: it is of another architecture or of another input size.")
        own[name].data.copy_(tensor)
        own[name].requires_grad_(True)
    return list(tensors)


def _adapt_as_described(model: nn.Module, metadata: Mapping[str, str], largest: int) -> None:
    """Adapt a model by the words of a file, whose tensors have up to ``largest`` numbers."""
    method = metadata["method"]
    require(method in ADAPTERS, f"The adapter's method {method!r} is unknown: import the module that registers it.")
    try:
        settings, blocks, targets = (json.loads(metadata[key]) for key in ("config", "blocks", "targets"))
        sizes = [value for key, value in settings.items() if key != "seed" and isinstance(value, int)]
        if any(size > largest for size in sizes):
            raise ValueError(f"a setting of {max(sizes)} is larger than its tensors")
        adapt(model, ADAPTERS[method](**settings), blocks, targets, initialize=False)
    except Exception as error:  # a description that was changed can fail at any place
        raise ValueError(f"The adapter's description is damaged or of another model: {error!r}.") from error


def base_sha256(base: nn.Module | Mapping[str, Tensor]) -> str:
    """A hash of the weights of the linear layers in the blocks, as float32.

    Patch and position embeddings do not count: timm resamples them, with results that depend on the machine.
    """
    weights = base.state_dict() if isinstance(base, nn.Module) else base
    matrices = {name: w for name, w in weights.items() if name.endswith(".weight") and w.ndim == 2}
    in_blocks = {name: w for name, w in matrices.items() if re.search(r"(^|\.)blocks\.\d+\.", name)}
    digest = hashlib.sha256()
    for name, weight in sorted((in_blocks or matrices).items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def low_rank_change(form: LowRankForm, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A (parts, 2 rank, in) and B (parts, out / parts, 2 rank) with residual + B A = ``weight`` + the stacked B A.

    Args:
        weight: (out, in), the pretrained one.

    Raises:
        ValueError: the residual does not differ from the weight by a matrix of the form's rank.
    """
    start = (weight.double() - form.residual.double()).reshape(form.b.shape[0], -1, weight.shape[1])  # B0 A0 by parts
    if not start.any():  # LoRA, which starts at the pretrained weight itself: the rank stays as it is
        return form.a.float(), form.b.float()
    q = _column_basis(start, form.a.shape[1])
    coefficients = q.mT @ start
    rest = (start - q @ coefficients).abs().max()
    require(
        bool(rest <= 1e-5 * weight.abs().max()),
        f"The given base is not the one that the model was adapted from: they differ by {rest:.1e} beyond the adapter.",
    )
    a = torch.cat([form.a.double(), coefficients], dim=1)
    b = torch.cat([form.b.double(), -q], dim=2)
    return a.float(), b.float()


def _column_basis(matrices: Tensor, rank: int) -> Tensor:
    """(parts, rows, rank), orthonormal columns that span those of matrices (parts, rows, columns) of that rank.

    A randomized range finder (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.1) with fixed random numbers.
    """
    columns = min(rank + OVERSAMPLING, *matrices.shape[1:])
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(matrices.shape[2], columns, dtype=matrices.dtype, generator=generator)
    q = torch.linalg.qr(matrices @ probe.to(matrices.device))[0]
    return q @ torch.linalg.svd(q.mT @ matrices, full_matrices=False)[0][..., :rank]


def _low_rank_tensors(
    forms: Mapping[str, LowRankForm | None], trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    tensors = {}
    for name, form in forms.items():
        assert form is not None
        require(f"{name}.weight" in weights, f"The base has no layer {name}: give the plain model that was adapted.")
        tensors[f"{name}.a"], tensors[f"{name}.b"] = low_rank_change(form, weights[f"{name}.weight"].to(form.residual))
    # What else trains has the name that it has in the plain model: biases, mostly.
    plain = {name.replace(PEFT_BASE, ""): tensor for name, tensor in trained.items()}
    return tensors | {n: t for n, t in plain.items() if n in weights and n.removesuffix(".weight") not in forms}


def _describe_layers(
    model: nn.Module, layers: Mapping[str, AdapterLayer], weights: Mapping[str, Tensor]
) -> dict[str, str]:
    config = next(iter(layers.values())).config
    blocks = find_blocks(model)
    adapted = [i for i, block in enumerate(blocks) if any(f"{name}.".startswith(f"{block}.") for name in layers)]
    roots = [f"{blocks[i]}." for i in adapted] if blocks else [""]
    inside = {name.removeprefix(root) for root in roots for name in layers if name.startswith(root)}
    targets = sorted(map(re.escape, inside)) if config.takes_targets else []
    return {
        "method": config.name,
        "config": json.dumps(asdict(config)),
        "blocks": json.dumps(adapted if blocks else None),
        "targets": json.dumps(targets),
        "read_directly": json.dumps([name for name in layers if is_read_directly(model, name)]),
    }


def _changed(model: nn.Module, layers: Iterable[str], weights: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that the base does not have and, in the adapter layers, has with other values."""
    inside = tuple(f"{layer}." for layer in layers)
    changed = set()
    for name, parameter in model.named_parameters():
        words = name.split(".")
        # A layer that wraps another one adds a word to the names of what it wraps.
        names = [name, *(".".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
        known = next((weights[plain] for plain in names if plain in weights), None)
        if known is None or (name.startswith(inside) and not torch.equal(known.to(parameter), parameter)):
            changed.add(name)
    return changed


def _name_of(base: nn.Module | Mapping[str, Tensor]) -> str:
    """Architecture and tag, where timm has noted them."""
    noted = getattr(base, "pretrained_cfg", None) or {}
    return ".".join(filter(None, (noted.get("architecture"), noted.get("tag")))) or "a model without a name"
