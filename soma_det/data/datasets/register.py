"""Registers data sets in Detectron2's catalogs: weather domains in VOC layout, COCO json files, and the catalog's.

Registering weather domains reads no annotations and needs no data on disk; the files of DATASETS.COCO_JSON are checked.
MetadataCatalog holds thing_classes; domain, the label of the weather, where one is known; and SOURCE, see below.
"""

import difflib
import functools
import os
import pickle
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from soma_det.data.datasets.catalog import CATALOG
from soma_det.data.datasets.coco_json import read_classes
from soma_det.data.datasets.diverse_weather import DEVKIT, find_domain_folder, find_list, load_voc_domain
from soma_det.data.datasets.prepared import MissingFile, find_image_root, prepared_file, raise_missing

SOURCE = "soma_det_source"  # key in MetadataCatalog: what this module registered the data set from
# Where a meta architecture reads its number of classes, below MODEL; the others in ROI_HEADS.
HEADS = {"RetinaNet": "RETINANET", "AdaptedRetinaNet": "RETINANET", "AdaptedLwDETR": "DETR"}
SPLITS = ("train", "test")  # always registered, so that a missing list is reported when it is asked for


class WeatherSource(NamedTuple):
    """Where a weather data set comes from: the arguments of load_voc_domain."""

    root: str
    domain: str
    split: str
    classes: tuple[str, ...]


def register_from_config(cfg: CfgNode) -> None:
    """Register DATASETS.WEATHER, DATASETS.COCO_JSON, and what TRAIN and TEST name of the catalog; check these two.

    Raises:
        FileNotFoundError: a file or folder of DATASETS.COCO_JSON does not exist.
        ValueError: an entry of DATASETS.COCO_JSON is malformed; a name in TRAIN or TEST is not registered; or a data
            set has another number of classes than the model, or other classes than the first.
    """
    weather = cfg.DATASETS.WEATHER
    names = register_weather_datasets(weather.PREFIX, weather_root(weather.ROOT), weather.DOMAINS, weather.CLASSES)
    for entry in cfg.DATASETS.COCO_JSON:
        _check_entry(entry)
        register_coco_json(*entry)
        names.append(entry[0])
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in names and name in CATALOG and CATALOG[name].reader:
            register_prepared(name)
    _check_used(cfg, names)


def weather_root(root: str = "") -> str:
    """The folder of the domains: ``root``, or $DETECTRON2_DATASETS/diverseWeather ("datasets" if that is not set)."""
    return root or os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "diverseWeather")


def register_weather_datasets(prefix: str, root: str, domains: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Register ``<prefix>_<domain>_<split>`` for the splits train, test and whatever lists the domains have on disk.

    The annotations are read when a data set is first asked for, and once in a process. Registering again with the same
    arguments does nothing; with other arguments it replaces what was there. Returns the names.

    Args:
        root: the folder that holds the domains, see :mod:`soma_det.data.datasets.diverse_weather`.
        domains: domains, spelled as they shall be in the names.
        classes: class names in the order of their category ids.

    Raises:
        ValueError: no domain, no class, a class twice, or a name that other code has registered.
    """
    if not domains or not classes or len({name.casefold() for name in classes}) < len(classes):
        found = f"got {list(domains)}, {list(classes)}"
        raise ValueError(f"DATASETS.WEATHER needs DOMAINS, and CLASSES that differ by more than case; {found}.")
    root, classes = os.path.abspath(root), tuple(classes)
    names = []
    for domain in domains:
        for split in dict.fromkeys((*SPLITS, *_splits_on_disk(root, domain))):
            name, source = f"{prefix}_{domain}_{split}", WeatherSource(root, domain, split, classes)
            if _make_room(name, source):
                DatasetCatalog.register(name, lambda source=source: pickle.loads(_load_weather(source)))
                metadata = MetadataCatalog.get(name)
                metadata.set(thing_classes=list(classes), domain=domain, split=split, **{SOURCE: source})
            names.append(name)
    return names


def register_coco_json(name: str, json_file: str, image_root: str, domain: str | None = None) -> None:
    """Register a data set with annotations in one COCO json file. It is read now, so that a broken one is found early.

    Args:
        domain: label of the data set's weather in results; None for the data set's name.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is not in COCO's format, or the name is taken.
    """
    for path, exists in ((json_file, os.path.isfile), (image_root, os.path.isdir)):
        if not exists(path):
            raise FileNotFoundError(f"DATASETS.COCO_JSON, {name!r}: {os.path.abspath(path)} does not exist.")
    source = (json_file, image_root, domain, os.stat(json_file).st_mtime_ns)
    if _make_room(name, source):
        metadata = {"thing_classes": read_classes(json_file), SOURCE: source}
        register_coco_instances(name, metadata | ({"domain": domain} if domain else {}), json_file, image_root)


def register_prepared(name: str) -> None:
    """Register a data set of the catalog, from its json where it has been prepared.

    Where it has not, the classes are the catalog's, and asking for the images raises a FileNotFoundError that says how
    to prepare them.

    Raises:
        FileNotFoundError: the json's folder of images does not exist.
        ValueError: the json is not in COCO's format or not of tools/prepare_data.py, or other code has the name.
    """
    entry, path = CATALOG[name], prepared_file(name)
    if path.is_file():
        register_coco_json(name, str(path), find_image_root(path), entry.domain)
        return
    source = MissingFile(name, str(path))
    if _make_room(name, source):
        DatasetCatalog.register(name, functools.partial(raise_missing, source))
        MetadataCatalog.get(name).set(thing_classes=list(entry.classes), domain=entry.domain, **{SOURCE: source})


def check_data_exists(names: Sequence[str]) -> None:
    """Raise a FileNotFoundError if the list or json of one of these data sets is missing; reads no annotations."""
    for name in names:
        source = MetadataCatalog.get(name).get(SOURCE)
        if isinstance(source, MissingFile):
            raise_missing(source)
        if isinstance(source, WeatherSource):
            find_list(source.root, source.domain, source.split)


@functools.cache
def _load_weather(source: WeatherSource) -> bytes:
    # Detectron2 loads a data set each time it builds a loader or an evaluator. Kept as bytes, the records take a
    # fraction of the memory, forked loader workers do not copy them page by page, and every caller gets its own.
    return pickle.dumps(load_voc_domain(*source), protocol=-1)


def _splits_on_disk(root: str, domain: str) -> list[str]:
    try:
        main = find_domain_folder(root, domain) / DEVKIT / "ImageSets" / "Main"
    except FileNotFoundError:  # reported, with a remedy, when the data set is asked for
        return []
    return sorted(path.stem for path in main.glob("*.txt"))


def _make_room(name: str, source: tuple) -> bool:
    """Whether ``name`` is free for ``source``, after removing what this module had registered there from another."""
    registered = MetadataCatalog.get(name).get(SOURCE)
    if name in DatasetCatalog and registered == source:
        return False
    if name in DatasetCatalog and registered is None:
        raise ValueError(f"A data set {name!r} exists already: choose another name (or DATASETS.WEATHER.PREFIX).")
    if registered is not None:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.remove(name)
    return True


def _check_entry(entry: object) -> None:
    words = entry if isinstance(entry, (list, tuple)) else ()
    if len(words) not in (3, 4) or not all(isinstance(word, str) and word for word in words):
        raise ValueError(
            f"DATASETS.COCO_JSON has the entry {entry!r}: write [name, json file, folder of images], with or without a "
            "domain as its fourth item."
        )


def _check_used(cfg: CfgNode, registered: Sequence[str]) -> None:
    """All used data sets are registered and have the model's number of classes, in one order, or scores are wrong."""
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in used:
        if name not in DatasetCatalog:
            near = difflib.get_close_matches(name, [*DatasetCatalog, *CATALOG], n=1)
            raise ValueError(
                f"DATASETS.TRAIN or DATASETS.TEST names {name!r}, which is not registered."
                + (f" Did you mean {near[0]!r}?" if near else "")
                + f" DATASETS.WEATHER and DATASETS.COCO_JSON give {', '.join(sorted(registered))}; datasets/README.md "
                "lists what tools/prepare_data.py prepares."
            )
    head = HEADS.get(cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")
    number = cfg.MODEL[head].NUM_CLASSES
    known = {name: MetadataCatalog.get(name).get("thing_classes") for name in used}  # None: registered elsewhere
    classes = {name: list(of) for name, of in known.items() if of}
    for name, of in classes.items():
        if len(of) != number:
            raise ValueError(
                f"MODEL.{head}.NUM_CLASSES is {number}, but data set {name!r} has {len(of)} classes: {', '.join(of)}. "
                f"Set NUM_CLASSES to {len(of)}, or change the data set's classes."
            )
        first = next(iter(classes))
        if of != classes[first]:
            raise ValueError(
                f"Data set {name!r} has the classes {', '.join(of)}, but {first!r} has {', '.join(classes[first])}: "
                "in one config all need the same classes in the same order (in a COCO json by rising category id)."
            )
