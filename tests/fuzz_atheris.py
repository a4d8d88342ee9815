#!/usr/bin/env python
"""Search by coverage for files that a reader cannot take: see --help, or run

python tests/fuzz_atheris.py --parser xml --seconds 60
"""

import argparse
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

EXAMPLES = """
Examples:

Every reader, two minutes each; ends with 1 where one raises what it does not document, or takes too long:
    python tests/fuzz_atheris.py

One reader for longer, with a folder that keeps what was found to lead to new code:
    python tests/fuzz_atheris.py --parser pickle --seconds 3600 --corpus output/fuzz

A file that failed, once more:
    python tests/fuzz_atheris.py --parser pickle --file output/fuzz/pickle/crash-0123abcd

Needs atheris (pip install atheris); it has wheels for Python 3.11 to 3.13 on Linux.
"""
PARSERS = ("xml", "coco", "config", "image", "adapter", "checkpoint", "pickle")  # of fuzz_parsers.py
INSTRUMENTED = ["soma_det", "detectron2.data.datasets", "defusedxml", "yaml", "yacs", "json", "pickle", "pickletools"]
INSTRUMENTED += ["PIL", "safetensors", "zipfile", "pycocotools"]
SECONDS, MEBIBYTES = 20, 4096  # of one case; torch alone is half a GiB


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Search by coverage for files that a reader cannot take.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parser", nargs="+", choices=PARSERS, default=PARSERS, help="which readers (all)")
    parser.add_argument("--seconds", type=int, default=120, metavar="N", help="for each reader (120)")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="for files that are kept (a temporary folder)")
    parser.add_argument("--file", type=Path, metavar="FILE", help="read this file alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process of one reader
    return parser.parse_args(argv)


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Run atheris in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz_parsers import PARSERS as READERS
    for number, content in enumerate(READERS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(content)
    logging.disable()
    warnings.simplefilter("ignore")
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEBIBYTES}",
        "-print_final_stats=1",
    ]
    options += [f"-artifact_prefix={corpus}/", str(corpus)]
    atheris.Setup([sys.argv[0], *options], lambda content: READERS[name].read(corpus.parent, content))
    atheris.Fuzz()


def run(name: str, corpus: Path, seconds: int) -> bool:
    """Fuzz one reader in a process of its own; say how many files it read, and whether all went well."""
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--inside", "--parser", name, "--corpus", corpus, "--seconds", str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
    found = re.search(r"number_of_executed_units: (\d+)", ended.stderr)
    print(
        f"{name}: {found[1] if found else 0} files, {'nothing found' if ended.returncode == 0 else 'FAILED'}",
        flush=True,
    )
    if ended.returncode:
        print(ended.stdout[-4000:], ended.stderr[-4000:])
    return ended.returncode == 0


def main(argv: list[str] | None = None) -> None:
    """A process for each reader, one after the other."""
    arguments = parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.file:
            from fuzz_parsers import PARSERS as READERS

            return READERS[arguments.parser[0]].read(Path(temporary), arguments.file.read_bytes())
        if arguments.inside:
            return fuzz(arguments.parser[0], arguments.corpus, arguments.seconds)
        folder = (arguments.corpus or Path(temporary)).resolve()
        good = [run(name, folder / name, arguments.seconds) for name in arguments.parser]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
