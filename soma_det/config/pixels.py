"""MODEL.PIXEL_MEAN and PIXEL_STD follow from the pretrained weights: images are normalized as in the pretraining.

The metadata of MODEL.VIT.WEIGHTS (.safetensors) states them; where it does not, timm's data config for MODEL.VIT.NAME
does; random weights get ImageNet's. They are in the order of channels of INPUT.FORMAT. A config file that leaves out
the two keys gets these values; one that sets others gets an error that names both. With random weights, or a checkpoint
in MODEL.WEIGHTS, there is nothing to contradict, and values that the config sets count. For other backbones, such as a
ResNet, the config file sets the two keys, as usual in Detectron2.
"""

import math
import os

import timm
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from timm.data import resolve_data_config

from soma_det.config.checks import has_vit
from soma_det.utils.vit_weights import PIXEL_MEAN, PIXEL_STD, read_metadata

KEYS = ("PIXEL_MEAN", "PIXEL_STD")


def fill_pixel_statistics(cfg: CN) -> None:
    """Set MODEL.PIXEL_MEAN and PIXEL_STD where the config leaves them at Detectron2's defaults.

    Raises:
        ValueError: the config sets other values than the pretrained weights need; or only a file that does not exist
            would tell them.
    """
    if not has_vit(cfg):
        _require_order_of_channels(cfg)
        return
    known = _pretrained_statistics(cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.WEIGHTS, cfg.INPUT.FORMAT)
    if known is None:
        _require_own_statistics(cfg)
        return
    for key, value in zip(KEYS, known):
        if _is_default(cfg, key):
            cfg.MODEL[key] = value
        elif cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS and not _equal(cfg.MODEL[key], value):
            raise ValueError(
                f"MODEL.{key} is {list(cfg.MODEL[key])}, and {cfg.MODEL.VIT.NAME} with MODEL.VIT.WEIGHTS "
                f"{cfg.MODEL.VIT.WEIGHTS!r} was pretrained with {value} ({cfg.INPUT.FORMAT}): leave the key out."
            )


def check_pixel_statistics(cfg: CN) -> None:
    """Raise a ValueError unless the config holds what :func:`fill_pixel_statistics` would set."""
    filled = cfg.clone()
    filled.defrost()
    fill_pixel_statistics(filled)
    for key in KEYS:
        if not _equal(cfg.MODEL[key], filled.MODEL[key]):
            raise ValueError(
                f"MODEL.{key} is {list(cfg.MODEL[key])}, Detectron2's default, and {cfg.MODEL.VIT.NAME} needs "
                f"{filled.MODEL[key]}: read the config with soma_det.config.setup_cfg, which sets it."
            )


def _pretrained_statistics(name: str, weights: str, channels: str) -> tuple[list[float], list[float]] | None:
    """(mean, standard deviation) of each channel, gray levels 0..255; None where the file that may tell is missing."""
    statistics = _timm_statistics(name if weights else "")
    if weights.endswith(".safetensors"):
        if not os.path.isfile(weights):
            return None
        noted = read_metadata(weights)
        statistics = noted.get(PIXEL_MEAN, statistics[0]), noted.get(PIXEL_STD, statistics[1])
    mean, std = (list(rgb) if channels == "RGB" else list(rgb)[::-1] for rgb in statistics)
    return mean, std


def _timm_statistics(name: str) -> tuple[list[float], list[float]]:
    pretrained = timm.models.get_pretrained_cfg(name) if name else None
    data = resolve_data_config({"in_chans": 3}, pretrained_cfg=pretrained.to_dict() if pretrained else {})
    mean, std = ([round(255 * value, 6) for value in data[key]] for key in ("mean", "std"))
    return mean, std


def _require_order_of_channels(cfg: CN) -> None:
    if cfg.INPUT.FORMAT == "RGB" and _is_default(cfg, "PIXEL_MEAN"):
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {list(cfg.MODEL.PIXEL_MEAN)}, Detectron2's default in the order BGR, and "
            "INPUT.FORMAT is RGB: set MODEL.PIXEL_MEAN and PIXEL_STD, for ImageNet's to [123.675, 116.28, 103.53] and "
            "[58.395, 57.12, 57.375]."
        )


def _require_own_statistics(cfg: CN) -> None:
    if cfg.MODEL.WEIGHTS and any(_is_default(cfg, key) for key in KEYS):
        raise ValueError(
            f"MODEL.VIT.WEIGHTS names {cfg.MODEL.VIT.WEIGHTS!r}, which does not exist, and would tell MODEL.PIXEL_MEAN "
            f"and PIXEL_STD: give the config.yaml from the folder of {cfg.MODEL.WEIGHTS}, which holds both."
        )


def _is_default(cfg: CN, key: str) -> bool:
    return _equal(cfg.MODEL[key], get_cfg().MODEL[key])


def _equal(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) and all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(first, second))
