"""MODEL.PIXEL_MEAN and PIXEL_STD follow from the pretrained weights: images are normalized as in the pretraining.

The metadata of MODEL.VIT.WEIGHTS (.safetensors) states them; where it does not, timm's data config for MODEL.VIT.NAME
does; random weights get ImageNet's. A config file that leaves out the two keys gets these values, in the order of
INPUT.FORMAT; one that sets others gets an error that names both. With random weights, or a checkpoint in MODEL.WEIGHTS,
there is nothing to contradict, and its values count. For other backbones, such as a ResNet, the file sets the two keys.
"""

import math
import os

import timm
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from timm.data import resolve_data_config

from soma_det.config.checks import has_vit
from soma_det.utils.vit_weights import read_metadata

KEYS = ("PIXEL_MEAN", "PIXEL_STD")


def fill_pixel_statistics(cfg: CN) -> None:
    """Set MODEL.PIXEL_MEAN and PIXEL_STD where the config leaves them at Detectron2's defaults.

    Raises:
        ValueError: the config sets other values than the pretrained weights need; or only a file that does not exist
            would tell them.
    """
    model, weights = cfg.MODEL, cfg.MODEL.VIT.WEIGHTS
    unset = [key for key in KEYS if _equal(model[key], get_cfg().MODEL[key])]
    if not has_vit(cfg):
        if cfg.INPUT.FORMAT == "RGB" and "PIXEL_MEAN" in unset:
            raise ValueError(
                f"MODEL.PIXEL_MEAN is {list(model.PIXEL_MEAN)}, Detectron2's default in the order BGR, and "
                "INPUT.FORMAT is RGB: set MODEL.PIXEL_MEAN and PIXEL_STD, for ImageNet's to [123.675, 116.28, 103.53] "
                "and [58.395, 57.12, 57.375]."
            )
    elif weights.endswith(".safetensors") and not os.path.isfile(weights):
        if model.WEIGHTS and unset:
            raise ValueError(
                f"MODEL.VIT.WEIGHTS names {weights!r}, which does not exist, and would tell MODEL.PIXEL_MEAN and "
                f"PIXEL_STD: give the config.yaml from the folder of {model.WEIGHTS}, which holds both."
            )
    else:
        for key, value in _pretrained_statistics(model.VIT.NAME, weights, cfg.INPUT.FORMAT).items():
            if key in unset:
                model[key] = value
            elif weights and not model.WEIGHTS and not _equal(model[key], value):
                raise ValueError(
                    f"MODEL.{key} is {list(model[key])}, and {model.VIT.NAME} with MODEL.VIT.WEIGHTS {weights!r} "
                    f"was pretrained with {value} ({cfg.INPUT.FORMAT}): leave the key out."
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


def _pretrained_statistics(name: str, weights: str, channels: str) -> dict[str, list[float]]:
    """The two keys' values, gray levels 0..255."""
    pretrained = timm.models.get_pretrained_cfg(name) if weights else None
    data = resolve_data_config({"in_chans": 3}, pretrained_cfg=pretrained.to_dict() if pretrained else {})
    noted = read_metadata(weights) if weights.endswith(".safetensors") else {}
    values = {}
    for key in KEYS:
        rgb = noted.get(key.lower()) or [round(255 * value, 6) for value in data[key.removeprefix("PIXEL_").lower()]]
        values[key] = list(rgb) if channels == "RGB" else list(rgb)[::-1]
    return values


def _equal(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) and all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(first, second))
