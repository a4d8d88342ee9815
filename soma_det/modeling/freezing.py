"""Freezing modules by name before training starts."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from torch import nn


def match_modules(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules whose whole dotted name one of the regular expressions matches.

    Raises:
        ValueError: a pattern matches no module.
    """
    modules = dict(model.named_modules())
    matched = {}
    for pattern in patterns:
        found = {name: module for name, module in modules.items() if name and re.fullmatch(pattern, name)}
        if not found:
            examples = [name for name in modules if name.count(".") <= 1 and name][:12]
            raise ValueError(f"{pattern!r} matches no module. Names look like {examples}; whole names are matched.")
        matched.update(found)
    return matched


def freeze(modules: Iterable[nn.Module]) -> None:
    """Stop training these modules: no gradients, and evaluation mode."""
    for module in modules:
        module.requires_grad_(False).eval()


def freeze_from_config(model: nn.Module, cfg: CfgNode) -> None:
    """Freeze SOLVER.FREEZING.MODULES where that is for good."""
    if cfg.SOLVER.FREEZING.UNTIL == 0:
        freeze(match_modules(model, cfg.SOLVER.FREEZING.MODULES).values())


def fingerprint(module: nn.Module) -> str:
    """A digest of all parameters and buffers of a module; equal exactly when they are bit-equal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
