"""Looks at a config file and its bases before they are loaded: yaml from outside can hold code and bombs."""

from typing import Any

import yaml
from detectron2.config import CfgNode

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 100_000  # after aliases are written out: nine lines of them can stand for 10^9 values
PYTHON_TAG = "tag:yaml.org,2002:python/"


def check_yaml(config_file: str) -> None:
    """Raise a ValueError where a config file, or a file that it names as its _BASE_, is not a safe mapping."""
    try:
        _Checked.load_yaml_with_base(config_file)
    except RecursionError as error:
        raise ValueError("its _BASE_ leads back to itself, or its values are nested too deeply.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not yaml: {error}") from error


class _Checked(CfgNode):
    """Opens files as Detectron2's config does, and looks at each before it is handed on."""

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        if "://" in str(filename):
            raise ValueError(f"_BASE_ is {filename}: configs are read from this machine alone; copy the file.")
        with open(filename, encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"{filename} has more than {MOST_CHARACTERS} characters: that is no config.")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"{filename} is not a mapping of keys: write KEY: value.")
        if (count := _count_values(root, {})) > MOST_VALUES:
            raise ValueError(f"{filename} stands for {count} values, more than {MOST_VALUES}: leave out its aliases.")
        return super()._open_cfg(filename)


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """The values below a node, aliases written out; raises where one holds itself or names a Python object."""
    if node.tag.startswith(PYTHON_TAG):
        raise ValueError(f"{node.tag.removeprefix('tag:yaml.org,2002:')!r} is not a value: it could run code.")
    if id(node) not in known:
        known[id(node)] = -1  # being counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        below = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in below)
    if known[id(node)] < 0:
        raise ValueError("an alias stands for the value that it is in.")
    return known[id(node)]
