"""How a config file and the command line become a config."""

import difflib
from collections.abc import Callable, Sequence

import yaml
from detectron2.config import CfgNode as CN

from soma_det.config.checks import check_cfg
from soma_det.config.defaults import default_cfg, flatten
from soma_det.config.pixels import fill_pixel_statistics

REMOVED = {  # key of an earlier version -> what to do instead
    "MODEL.ADAPTER.SOMA.CACHE": "decompositions are no longer kept on disk, since they take a second. Delete the key.",
}


def setup_cfg(config_file: str, opts: Sequence[str] = ()) -> CN:
    """The frozen config of a file and of ``KEY VALUE`` overrides.

    MODEL.PIXEL_MEAN and PIXEL_STD become those of the ViT's pretrained weights.

    Raises:
        ValueError: a key does not exist, a value has a wrong type, or two settings contradict each other.
    """
    cfg = default_cfg()
    if len(opts) % 2:
        raise ValueError(f"Overrides come in pairs, KEY VALUE; these are {len(opts)} words: {list(opts)}")
    if config_file:
        _merge(cfg, config_file, cfg.merge_from_file, config_file)
    _merge(cfg, "the command line", cfg.merge_from_list, list(opts))
    check_cfg(cfg)
    fill_pixel_statistics(cfg)
    cfg.freeze()
    return cfg


def _merge(cfg: CN, source: str, merge: Callable, what: str | list) -> None:
    try:
        merge(what)
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Wrong setting in {source}: {_explain(error, cfg)}") from error


def _explain(error: Exception, cfg: CN) -> str:
    """The error's own words and, for an unknown key, what became of it or the nearest key that exists."""
    message = str(error.args[0]) if error.args else str(error)
    if "key" not in message.lower():
        return message
    key = message.rsplit(" ", 1)[-1].strip("'\"")
    if key in REMOVED:
        return f"{key} was removed: {REMOVED[key]}"
    near = difflib.get_close_matches(key, flatten(cfg), n=1, cutoff=0.5)
    return message + (f". Did you mean {near[0]}?" if near else "")
