"""Made-up files: whatever is in them, only the documented errors come out, within a bound of time and memory.

500 cases in all, or as many as $SOMA_DET_FUZZ_CASES says; `make fuzz` runs 20,000.
"""

import json
import os
import resource
import time
from contextlib import contextmanager

import pytest
import yaml
from fuzz_parsers import COCO, CONFIG, OBJECT, PARSERS, TAGS, XML, adapter_file
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from soma_det.config.defaults import default_cfg, flatten

CASES = int(os.environ.get("SOMA_DET_FUZZ_CASES", "500"))
SECONDS, MEBIBYTES = 20, 300  # of one case, on a busy machine
fuzz = settings(
    max_examples=-(-CASES // len(PARSERS)),
    derandomize=CASES <= 500,  # the same cases in every run of the suite
    database=None,
    deadline=None,
    phases=[Phase.generate],  # without shrinking, which takes minutes for files of this size
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def bounded():
    """Fails where the block takes too long or too much memory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.perf_counter() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(name, folder, content):
    with bounded():
        PARSERS[name].read(folder, content)


@st.composite
def damaged(draw, *contents):
    """One of these files with up to eight bytes changed, cut out or put in, or its end cut off."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 8))):
        place, kind = draw(st.integers(0, len(content))), draw(st.integers(0, 3))
        if kind == 0 and place < len(content):
            content[place] = draw(st.integers(0, 255))
        elif kind == 1:
            del content[place : place + draw(st.integers(1, 16))]
        elif kind == 2:
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif draw(st.booleans()):
            del content[place:]
    return bytes(content)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 2**63, 10**30, 1e308]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)

# XML

PIECES = [f"<{tag}>" for tag in TAGS] + [f"</{tag}>" for tag in TAGS]
PIECES += [
    '<!DOCTYPE a [<!ENTITY e "x">]>',
    "&e;",
    "&amp;",
    "<![CDATA[",
    "]]>",
    "<?xml version='1.0'?>",
    "1e999",
    "nan",
]
FIELDS = st.tuples(st.text(max_size=5), *[st.one_of(NUMBERS.map(str), st.text(max_size=5))] * 4)
OBJECTS = st.lists(FIELDS, max_size=4).map(
    lambda all_fields: f"<annotation>{''.join(OBJECT.format(*fields) for fields in all_fields)}</annotation>".encode(
        errors="replace"
    )
)
XMLS = st.one_of(
    damaged(XML), OBJECTS, st.lists(st.sampled_from(PIECES), max_size=20).map(lambda p: "".join(p).encode())
)


@fuzz
@given(content=XMLS)
def test_annotations_in_xml(folder, content):
    read("xml", folder, content)


# COCO json


@st.composite
def changed_coco(draw):
    """The json above with some values of other kinds."""
    content = json.loads(json.dumps(COCO))
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(list(COCO)))
        entry = draw(st.sampled_from(content[part])) if isinstance(content.get(part), list) and content[part] else None
        if draw(st.integers(0, 9)) == 0 or not isinstance(entry, dict) or not entry:
            content[part] = draw(VALUES)
        elif draw(st.booleans()):
            entry["bbox"] = draw(st.lists(NUMBERS, min_size=4, max_size=4))
        else:
            entry[draw(st.sampled_from(sorted(entry)))] = draw(VALUES)
    return json.dumps(content).encode()


@fuzz
@given(content=st.one_of(changed_coco(), damaged(json.dumps(COCO).encode())))
def test_coco_json_and_what_is_accepted_loads_in_detectron2(folder, content):
    read("coco", folder, content)


# Configs

KEYS = sorted(flatten(default_cfg()))


def nested(settings_):
    """{"A.B": 1} as yaml of {"A": {"B": 1}}."""
    top: dict = {}
    for key, value in settings_.items():
        *parents, last = key.split(".")
        node = top
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return yaml.safe_dump(top).encode(errors="replace")


SETTINGS = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3).map(nested)


@fuzz
@given(content=st.one_of(damaged(CONFIG), SETTINGS))
def test_configs(folder, content):
    read("config", folder, content)


# Images


@fuzz
@given(content=damaged(*PARSERS["image"].seeds()))
def test_images(folder, content):
    read("image", folder, content)


# Weights


@st.composite
def changed_header(draw):
    """The file above with other values in its header, or with damage in it."""
    content = adapter_file()[1]
    length = int.from_bytes(content[:8], "little")
    if draw(st.integers(0, 2)) == 0:
        return draw(damaged(content[: 8 + length])) + content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(sorted(metadata)))
        metadata[key] = draw(st.text(max_size=8) | VALUES.map(json.dumps))
    if draw(st.booleans()):
        entry = header[draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))]
        entry[draw(st.sampled_from(["shape", "data_offsets", "dtype"]))] = draw(VALUES)
    changed = json.dumps(header, allow_nan=True).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


@fuzz
@given(content=st.deferred(changed_header))
def test_headers_of_safetensors(folder, content):
    read("adapter", folder, content)


@fuzz
@given(content=damaged(*PARSERS["checkpoint"].seeds()))
def test_checkpoints_of_torch(folder, content):
    read("checkpoint", folder, content)


@fuzz
@given(content=damaged(*PARSERS["pickle"].seeds()))
def test_pickles_of_the_model_zoo(folder, content):
    read("pickle", folder, content)
