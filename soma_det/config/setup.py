"""How a config file and the command line become a config."""

import difflib
import functools
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode as CN

from soma_det.config.checks import check_cfg
from soma_det.config.defaults import default_cfg, flatten
from soma_det.config.files import check_yaml
from soma_det.config.pixels import fill_pixel_statistics

REMOVED = {  # key of an earlier version -> what to do instead
    "MODEL.ADAPTER.SOMA.CACHE": "decompositions are no longer kept on disk, since they take a second. Delete the key.",
}


def setup_cfg(config_file: str, opts: Sequence[str] = ()) -> CN:
    """The frozen config of a file and of ``KEY VALUE`` overrides.

    MODEL.PIXEL_MEAN and PIXEL_STD become those of the ViT's pretrained weights.

    Raises:
        FileNotFoundError: the file, or one that it names as its _BASE_, does not exist.
        ValueError: the file is not safe yaml, a key does not exist, a value has a wrong type, or two settings
            contradict each other.
    """
    cfg = default_cfg()
    if len(opts) % 2:
        raise ValueError(f"Overrides come in pairs, KEY VALUE; these are {len(opts)} words: {list(opts)}")
    if config_file:
        _merge(cfg, config_file, check_yaml, config_file)
        # Detectron2 would load a file with !!python tags unsafely, and so run what they name.
        _merge(cfg, config_file, functools.partial(cfg.merge_from_file, allow_unsafe=False), config_file)
    _merge(cfg, "the command line", cfg.merge_from_list, list(opts))
    try:
        check_cfg(cfg)
        fill_pixel_statistics(cfg)
    except (TypeError, AttributeError, OverflowError) as error:  # yacs takes None, and lists of anything
        raise ValueError(f"A setting in {config_file} or on the command line has a wrong type: {error}.") from error
    cfg.freeze()
    return cfg


def _merge(cfg: CN, source: str, merge: Callable, what: str | list) -> None:
    try:
        merge(what)
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"Wrong setting in {source}: {_explain(error, cfg)}") from error


def _explain(error: Exception, cfg: CN) -> str:
    """The error's own words and, for an unknown key, what became of it or the nearest key that exists."""
    message = str(error.args[0]) if error.args else str(error)
    if isinstance(error, (TypeError, AttributeError)):
        return f"a key or value has a wrong type ({message})"
    if "key" not in message.lower():
        return message
    key = message.rsplit(" ", 1)[-1].strip("'\"")
    if key in REMOVED:
        return f"{key} was removed: {REMOVED[key]}"
    near = difflib.get_close_matches(key, flatten(cfg), n=1, cutoff=0.5)
    return message + (f". Did you mean {near[0]}?" if near else "")
