"""Where the json files of tools/prepare_data.py are expected, and what they say of themselves."""

import json
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from soma_det.data.datasets.catalog import CATALOG


class MissingFile(NamedTuple):
    """A data set of the catalog that has not been prepared."""

    name: str
    json_file: str


def prepared_file(name: str) -> Path:
    """``$DETECTRON2_DATASETS/<name>.json``; "datasets" if the variable is not set."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), f"{name}.json")


def read_info(path: Path) -> dict:
    """The "info" of a json: how it was made, its ``image_root``, and what was not taken over; empty if it has none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    info = content.get("info") if isinstance(content, dict) else None
    return info if isinstance(info, dict) else {}


def find_image_root(path: Path) -> str:
    """The folder of the images of a prepared json.

    Raises:
        ValueError: tools/prepare_data.py did not write the file.
        FileNotFoundError: the folder is gone.
    """
    root = read_info(path).get("image_root")
    if not isinstance(root, str) or not root:
        raise ValueError(
            f"{path} does not say where its images are, as files of tools/prepare_data.py do: list it in "
            "DATASETS.COCO_JSON with its folder, or prepare it."
        )
    if not (folder := path.parent / root).is_dir():  # an absolute root replaces the parent
        raise FileNotFoundError(f"The images of {path} were in {folder}, which does not exist: prepare it again.")
    return str(folder)


def raise_missing(source: MissingFile) -> NoReturn:
    """Raise a FileNotFoundError that says how to prepare the data set."""
    raise FileNotFoundError(
        f"Data set {source.name!r} needs {os.path.abspath(source.json_file)}, which does not exist. Prepare it: "
        f"{CATALOG[source.name].command} --output {source.json_file}. Or set DETECTRON2_DATASETS to the folder of it."
    )
