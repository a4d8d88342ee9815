"""Keeps decompositions on disk, so that a model of the same pretrained weights starts without computing them again.

What is kept are A and B of every adapted layer, a few percent of the weights; the residual W - B A follows from them
and the weights at hand. Minor singular vectors are nearly degenerate and differ between machines and LAPACKs, but any
of them, with the residual that belongs to them, compose the same weight.
"""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Mapping

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from soma_det.utils.files import write_bytes

FORMAT = 1  # part of every key: raise it when what is stored, or how it is computed, changes
Factors = dict[str, tuple[Tensor, Tensor]]  # layer -> a (parts, rank, in), b (parts, out / parts, rank)

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """$SOMA_DET_CACHE, or ~/.cache/soma_det/decompositions."""
    return Path(os.environ.get("SOMA_DET_CACHE") or Path.home() / ".cache" / "soma_det" / "decompositions")


class DecompositionCache:
    """The place of one decomposition in a folder of them.

    The name of its file is a hash of the weights' contents, of the layers' names and of all settings, so a file is
    either right or not found. Files appear whole or not at all: several processes may use one folder.
    """

    def __init__(self, folder: str | os.PathLike, weights: Mapping[str, Tensor], **settings: int | str | None):
        """
        Args:
            folder: made when something is saved.
            weights: layer -> (out, in), the pretrained weights that are decomposed.
            settings: whatever else the decomposition depends on, such as the rank.
        """
        self.path = Path(folder) / f"{content_key(weights, settings)}.safetensors"

    def load(self) -> Factors | None:
        """What was saved, on the CPU; None where there is nothing, or nothing intact, which is logged."""
        try:
            with safe_open(self.path, framework="pt") as file:
                tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("Cannot read the cached decomposition %s (%s): decomposing again.", self.path, error)
            return None
        if metadata.get("digest") != _digest(tensors):
            logger.warning("The cached decomposition %s is damaged: decomposing again.", self.path)
            return None
        layers = sorted({key.rpartition(".")[0] for key in tensors})
        return {layer: (tensors[f"{layer}.a"], tensors[f"{layer}.b"]) for layer in layers}

    def save(self, factors: Factors) -> None:
        """Keep these, unless another process of the training does; a disk that refuses is logged and nothing more."""
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        tensors = {f"{layer}.{name}": t for layer, pair in factors.items() for name, t in zip("ab", pair)}
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        try:
            write_bytes(self.path, save(tensors, {"digest": _digest(tensors)}))
        except OSError as error:
            logger.warning("Cannot keep the decomposition in %s (%s): set SOMA_DET_CACHE.", self.path.parent, error)


def content_key(weights: Mapping[str, Tensor], settings: Mapping[str, int | str | None]) -> str:
    """A hash of the contents of all weights and of the settings, 32 hexadecimal digits."""
    with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as pool:  # hashing a large buffer releases the GIL
        contents = list(pool.map(_hash, weights.values()))
    layers = [[name, *content] for name, content in zip(weights, contents)]
    return hashlib.blake2b(json.dumps([FORMAT, layers, settings], sort_keys=True).encode(), digest_size=16).hexdigest()


def _hash(tensor: Tensor) -> tuple[str, list[int], str]:
    """(dtype, shape, digest of the bytes)"""
    data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return str(tensor.dtype), list(tensor.shape), hashlib.blake2b(data).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return content_key({key: tensors[key] for key in sorted(tensors)}, {})
