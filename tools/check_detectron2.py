#!/usr/bin/env python
"""Compare the installed sources of Detectron2 with the recorded hashes: see --help, or run

python tools/check_detectron2.py
"""

import argparse
import base64
import csv
import hashlib
import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution

NAME = "sal-detectron2"  # requirements/detectron2.txt
# The sha256 of the names and hashes in RECORD, the list of files that pip keeps: with it the list is compared, and with
# the list the files.
RECORDED = {"0.7.2": "31a8bbc48267b5f1c4e4ea56bad1950ff19f8ac0596bca086f98e323f7ba10e3"}


def sources(wheel: Distribution) -> dict[str, str]:
    """Name -> hash of each Python file in RECORD, by name.

    Not by ``wheel.files``, which leaves out files that are missing from Python 3.12 on.
    """
    rows = csv.reader((wheel.read_text("RECORD") or "").splitlines())
    return {name: value.partition("=")[2] for name, value, _ in sorted(rows) if name.endswith(".py")}


def fingerprint(files: Mapping[str, str]) -> str:
    """One sha256 of the names and listed hashes."""
    lines = (f"{name} {value}\n" for name, value in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def differences(wheel: Distribution) -> list[str]:
    """What is not as the wheel had it, a sentence each: the list itself, and changed, missing or added files."""
    listed = sources(wheel)
    found = [] if fingerprint(listed) == RECORDED.get(wheel.version) else ["RECORD, pip's list of the files, differs"]
    root = wheel.locate_file("detectron2")
    present = {str(path.relative_to(root.parent)): path for path in root.rglob("*.py")}
    present |= {name: path for name in listed if (path := wheel.locate_file(name)).is_file()}
    for name in sorted(listed.keys() | present.keys()):
        if name not in present:
            found.append(f"{name} is missing")
        elif name not in listed:
            found.append(f"{name} was added")
        elif encoded(present[name].read_bytes()) != listed[name]:
            found.append(f"{name} was changed")
    return found


def encoded(content: bytes) -> str:
    """A sha256 as RECORD writes it."""
    digest = hashlib.sha256(content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def main() -> None:
    """Say what differs, and end with 1 where anything does."""
    parser = argparse.ArgumentParser(
        description="Compare the installed sources of Detectron2 with the recorded hashes."
    )
    parser.parse_args()
    try:
        wheel = distribution(NAME)
    except PackageNotFoundError:
        print(f"{NAME} is not installed: there is nothing to compare. Another Detectron2 is used as it is.")
        return
    if found := differences(wheel):
        print(*found, sep="\n")
        sys.exit("Detectron2 is not that of requirements/detectron2.txt. Remove the environment and run make setup.")
    print(f"{NAME} {wheel.version}: {len(sources(wheel))} Python files are as recorded.")


if __name__ == "__main__":
    main()
