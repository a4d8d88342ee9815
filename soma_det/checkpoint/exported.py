"""A trained detector as one small file: adapter, pyramid and heads, without the pretrained weights."""

import os

from detectron2.config import CfgNode
from safetensors.torch import save_file
from torch import Tensor, nn

from soma_det.adapters import files
from soma_det.modeling.backbone.timm_vit import find_vits
from soma_det.utils.files import atomic_path

SUFFIX = ".safetensors"
FORMAT = "soma_det.detector.1"
ADAPTER, DETECTOR = "adapter.", "detector."  # prefixes of the tensors' names


def is_exported(path: str) -> bool:
    """Whether MODEL.WEIGHTS names such a file, by its suffix; checkpoints end in .pth."""
    return path.endswith(SUFFIX)


def export_detector(model: nn.Module, path: str | os.PathLike, base: nn.Module) -> None:
    """Write a detector whose ViT is adapted and not merged to a .safetensors file, whole or not at all.

    Args:
        base: the plain timm model with the pretrained weights that the training started from.

    Raises:
        ValueError: the detector has no ViT, the base does not fit it, or the path has another suffix.
    """
    if not is_exported(str(path)):
        raise ValueError(f"The file to export to is {path}: give it the suffix {SUFFIX}.")
    vit, prefix = _find_vit(model)
    adapter, metadata = files.describe_adapter(vit, base, allow_frozen=True)
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefix)}
    tensors = {f"{ADAPTER}{name}": tensor for name, tensor in adapter.items()}
    tensors |= {f"{DETECTOR}{name}": tensor.cpu().contiguous() for name, tensor in rest.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {**metadata, "format": FORMAT})


def load_exported(model: nn.Module, path: str | os.PathLike) -> None:
    """Put an exported detector into a model whose ViT is plain and holds the pretrained weights, in place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an exported detector, or one of other pretrained weights or of another model.
    """
    tensors, metadata = files.read_adapter(path, FORMAT)
    vit, prefix = _find_vit(model)
    files.apply_adapter(vit, _below(tensors, ADAPTER), metadata)
    rest = _below(tensors, DETECTOR)
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith(prefix)}
    unequal = [name for name in {**own, **rest} if own.get(name) != getattr(rest.get(name), "shape", None)]
    if unequal:
        raise ValueError(
            f"{path} is of another detector: {len(unequal)} weights are missing, left over or of another shape, such "
            f"as {unequal[:3]}. Use the config it was trained with."
        )
    model.load_state_dict(rest, strict=False)


def with_plain_vit(cfg: CfgNode) -> CfgNode:
    """The config of the model that :func:`load_exported` fills: pretrained, nothing adapted."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.ADAPTER.NAME = "", "frozen"
    cfg.freeze()
    return cfg


def _find_vit(model: nn.Module) -> tuple[nn.Module, str]:
    """The timm model of a detector, and the prefix of its weights' names."""
    for name, vit in find_vits(model).items():
        return vit.model, f"{name}.model."
    raise ValueError("The detector has no ViT of timm: only those with an adapted ViT are exported without it.")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
