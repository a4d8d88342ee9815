"""The comparison file, which lists configurations, and the checks that they can be compared."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

KEYS = {
    "command": str,
    "config": str,
    "options": dict,
    "seeds": list,
    "reference": str,
    "classes": list,
    "validation": str,
    "runs": dict,
}
# Settings that all runs of a comparison share: the data, the number of iterations, the detector on top of the backbone.
EQUAL = (
    "DATALOADER",
    "DATASETS",
    "INPUT",
    "MODEL.ANCHOR_GENERATOR",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.PROPOSAL_GENERATOR",
    "MODEL.PYRAMID",
    "MODEL.RETINANET",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_HEADS",
    "MODEL.RPN",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "TEST",
)
# What a comparison may ask about in spite of that: the images, their order and the detector's parts stay the same.
MAY_DIFFER = ("INPUT.AUGMENTATION.FOURIER", "INPUT.AUGMENTATION.WEATHER", "MODEL.ROI_HEADS.BACKGROUND_PRIOR")

COMMANDS = ("train_net.py", "adapt_domain.py")  # in tools/, that train a run


@dataclass(frozen=True)
class Configuration:
    """One configuration of the detector.

    Attributes:
        name: names its folder too.
        config_file: path.
        opts: KEY VALUE words.
    """

    name: str
    config_file: str
    opts: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Configurations, the seeds that each of them trains with, and how they are judged.

    Attributes:
        reference: name of the configuration that all others are compared with.
        classes: classes that scores are averaged over; empty: all.
        validation: the unseen test set that may be used to choose settings, beside the source; empty: none.
        command: the tool that trains and evaluates.
    """

    configurations: tuple[Configuration, ...]
    seeds: tuple[int, ...]
    reference: str
    classes: tuple[str, ...] = ()
    validation: str = ""
    command: str = COMMANDS[0]


def load_comparison(
    path: str | Path,
    opts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    reference: str = "",
    only: Sequence[str] = (),
) -> Comparison:
    """Read a comparison file::

        config: ../Base-CPU.yaml        # of every run, relative to this file
        options: {SOLVER.MAX_ITER: 300} # of every run
        seeds: [1, 2, 3]
        reference: soma                 # the others are compared with it
        classes: [car, person]          # scores are means over these classes; without it, over all
        validation: night_rainy_test    # chooses settings, with the source; the other test sets confirm the choice
        command: train_net.py           # or adapt_domain.py
        runs:
          soma: {}
          lora: {MODEL.ADAPTER.NAME: lora}
          resnet: {config: ibn_resnet.yaml}

    "{seed}" in a value is the run's seed.

    Args:
        opts: KEY VALUE words for every run. They override ``options``, and a run's own settings override them.
        seeds, reference: in place of the file's, unless empty.
        only: names of the runs to take; empty: all.

    Raises:
        FileNotFoundError: the file, or a config that it names, does not exist.
        ValueError: the file is malformed, or a name is unknown.
    """
    path = Path(path)
    content = _read(path)
    config, shared = content.get("config"), [*_words(content.get("options") or {}), *opts]
    configurations = [_configuration(path, name, run or {}, config, shared) for name, run in content["runs"].items()]
    names = [configuration.name for configuration in configurations]
    reference = reference or content.get("reference") or names[0]
    unknown = sorted({*only, reference} - set(names))
    if unknown:
        raise ValueError(f"{path} has no run {', '.join(map(repr, unknown))}; it has {', '.join(names)}.")
    chosen = tuple(c for c in configurations if not only or c.name in only or c.name == reference)
    classes = tuple(content.get("classes") or ())
    seeds = _check_seeds(seeds or content.get("seeds") or ())
    command = content.get("command") or COMMANDS[0]
    if command not in COMMANDS:
        raise ValueError(f"{path}: command is {command!r}; choose {' or '.join(COMMANDS)}.")
    return Comparison(chosen, seeds, reference, classes, content.get("validation") or "", command)


def require_comparable(cfgs: dict[str, CfgNode]) -> None:
    """Raise a ValueError unless all train on the source domain alone, on the same images with the same detector.

    Where there is a target (UDA.TARGET), annotated images may be its, too: those of an oracle.

    Args:
        cfgs: name -> config, whose data sets are registered.
    """
    first = next(iter(cfgs))
    for name, cfg in cfgs.items():
        _require_source_only(name, cfg)
        ours, theirs = equal_settings(cfg), equal_settings(cfgs[first])
        unequal = [key for key in ours if ours[key] != theirs.get(key)]
        if unequal:
            key = unequal[0]
            raise ValueError(
                f"{name} and {first} cannot be compared: {key} is {ours[key]!r} and {theirs.get(key)!r} (and "
                f"{len(unequal) - 1} more keys differ). Set it for all runs, under options of the comparison file."
            )


def require_classes(cfg: CfgNode, classes: Sequence[str]) -> None:
    """Raise a ValueError for a class that the test sets do not have."""
    known = MetadataCatalog.get(cfg.DATASETS.SOURCE_TEST).thing_classes
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(f"classes of the comparison file: {unknown} are not among the data set's {list(known)}.")


def require_validation(cfg: CfgNode, validation: str) -> None:
    """Raise a ValueError unless ``validation`` is empty, or one of several unseen test sets."""
    unseen = [name for name in cfg.DATASETS.TEST if name != cfg.DATASETS.SOURCE_TEST]
    if validation and (validation not in unseen or len(unseen) < 2):
        raise ValueError(
            f"validation of the comparison file is {validation!r}: choose one of two or more from {unseen}."
        )


def flat_settings(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    """{"MODEL.ADAPTER.RANK": 16, ...}, with lists for tuples, as a saved config has them."""
    flat = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def equal_settings(cfg: CfgNode) -> dict[str, object]:
    """The settings that all runs of a comparison share."""
    may_differ = (*MAY_DIFFER, "DATASETS.TRAIN") if cfg.UDA.TARGET else MAY_DIFFER
    return {k: v for k, v in flat_settings(cfg).items() if _is_below(k, EQUAL) and not _is_below(k, may_differ)}


def _is_below(key: str, prefixes: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in prefixes)


def _require_source_only(name: str, cfg: CfgNode) -> None:
    source, tests = cfg.DATASETS.SOURCE_TEST, cfg.DATASETS.TEST
    if not source or len(tests) < 2:
        raise ValueError(
            f"{name}: a comparison needs DATASETS.SOURCE_TEST and an unseen test set beside it; DATASETS.TEST is "
            f"{list(tests)}, SOURCE_TEST {source!r}."
        )
    domains = [MetadataCatalog.get(known).get("domain") for known in (source, *cfg.UDA.TARGET)]
    for train in cfg.DATASETS.TRAIN:
        # A data set from a json file has no domain by which to tell.
        if train in tests or MetadataCatalog.get(train).get("domain") not in (None, *domains):
            raise ValueError(
                f"{name} trains on {train}: to compare on unseen weather, train on splits of {source}'s domain "
                "only, and on none that is tested."
            )


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"The comparison file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("runs"), dict) or not content["runs"]:
        raise ValueError(f"{path} is not a comparison file: it needs 'runs', a mapping of names to settings.")
    if set(content) - set(KEYS):
        raise ValueError(f"{path} has the unknown keys {sorted(set(content) - set(KEYS))}; known are {sorted(KEYS)}.")
    for key, value in content.items():
        if value is not None and not isinstance(value, KEYS[key]):
            expected = {str: "a word", list: "a list, in [ ]", dict: "a mapping of names to values"}[KEYS[key]]
            raise ValueError(f"{path}: {key} is {value!r}; it must be {expected}.")
    return content


def _configuration(path: Path, name: str, run: dict, config: str | None, shared: list[str]) -> Configuration:
    if not re.fullmatch(r"\w[\w.+-]*", str(name)):
        raise ValueError(f"{path}: the run {name!r} names a folder; use letters, digits and . + - _ only.")
    if not isinstance(run, dict):
        raise ValueError(f"{path}: the run {name} is {run!r}; write KEY: VALUE pairs, or {{}}.")
    own = {key: value for key, value in run.items() if key != "config"}
    config = run.get("config", config)
    if not config:
        raise ValueError(f"{path}: the run {name} has no config; set it there, or once for all runs.")
    config_file = Path(os.path.normpath(path.parent / config))
    if not config_file.is_file():
        raise FileNotFoundError(f"{path}: the run {name} names the config {config_file}, which does not exist.")
    return Configuration(str(name), str(config_file), (*shared, *_words(own)))


def _words(settings: dict) -> list[str]:
    return [str(word) for pair in settings.items() for word in pair]


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    # Detectron2 replaces a negative seed by a random one. Such runs cannot be paired.
    if not seeds or len(set(seeds)) < len(seeds) or any(not isinstance(s, int) or s < 0 for s in seeds):
        raise ValueError(f"A comparison needs distinct seeds from 0 on; got {list(seeds)}.")
    return tuple(seeds)
