"""A folder of data sets in which new training lists can be written, without writing to the data themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from soma_det.data.datasets.diverse_weather import DEVKIT, find_domain_folder
from soma_det.utils.files import write_text


def link_domains(root: str | Path, domains: Sequence[str], target: str, folder: Path) -> Path:
    """Make ``folder`` a data root that links to the domains of ``root``; lists of ``target`` are copies.

    Returns:
        the folder of the lists of ``target``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for domain in domains:
        source, link = find_domain_folder(root, domain).resolve(), folder / domain
        if domain != target:
            _link(link, source)
            continue
        for name in ("Annotations", "JPEGImages"):
            _link(link / DEVKIT / name, source / DEVKIT / name)
        lists = link / DEVKIT / "ImageSets" / "Main"
        for path in (source / DEVKIT / "ImageSets" / "Main").glob("*.txt"):
            write_text(lists / path.name, path.read_text(encoding="utf-8"))
    return folder / target / DEVKIT / "ImageSets" / "Main"


def draw_random(boxes: Mapping[str, int], budget: int, seed: int, labelled: Sequence[str] = ()) -> list[str]:
    """Random images until they have ``budget`` boxes, or come nearest to it.

    Args:
        boxes: image -> its number of boxes.
        labelled: images that are not drawn.
    """
    names = [name for name in sorted(boxes) if name not in set(labelled)]
    order = np.random.default_rng(seed).permutation(len(names))
    drawn: list[str] = []
    spent = 0
    for name in (names[i] for i in order):
        if abs(spent + boxes[name] - budget) > abs(spent - budget):
            break
        drawn.append(name)
        spent += boxes[name]
    return drawn


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target, target_is_directory=True)
