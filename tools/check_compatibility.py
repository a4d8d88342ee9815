#!/usr/bin/env python
"""Run the tests with other versions, each in an environment of its own: see --help, or run

python tools/check_compatibility.py --python 3.10 --torch oldest
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """
Examples:

The tests of `make test` on Python 3.10, 3.11 and 3.12, with the locked and with the oldest versions:
    python tools/check_compatibility.py

A few tests with one torch, in an environment that stays, in output/compatibility/3.11-2.9.1:
    python tools/check_compatibility.py --python 3.11 --torch 2.9.1 --tests tests/test_adapters.py --keep

Needs uv (pip install uv), the package index, and 8 GB of disk for the time of a run; environments are made and
removed one after the other. Ctrl-C at any time: rows that are finished are not run again, until --output is deleted.
"""
EXTRAS = ("test", "peft", "detr", "masks", "cluster", "export", "supervision")
SOURCES_ALONE = ("antlr4-python3-runtime", "fvcore", "iopath")  # the index has no wheels of these
SHOWN = ("torch", "timm", "numpy")
COUNTS = ("passed", "failed", "skipped", "seconds")
HEADER = ("Python", "packages", *SHOWN, *COUNTS)


class InstallationError(RuntimeError):
    """An environment could not be made; the message is the end of the log."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Run the tests in environments with other versions, and write a table of the results.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", nargs="+", default=["3.10", "3.11", "3.12"], metavar="X.Y", help="which Pythons")
    parser.add_argument(
        "--torch",
        nargs="+",
        default=["locked", "oldest"],
        metavar="WHICH",
        help="locked: the versions of make setup; oldest: the lowest that pyproject.toml allows, of all packages; "
        "a version of torch: with the newest of the others that go with it",
    )
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="ARG", help="arguments for pytest")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that run tests (1)")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "output/compatibility",
        metavar="DIR",
        help="for table, logs, environments",
    )
    parser.add_argument("--keep", action="store_true", help="leave the environments there")
    return parser.parse_args(argv)


def find_python(version: str) -> Path | None:
    """A Python X.Y on the path or of pyenv that starts, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which(f"python{version}")
    for candidate in filter(None, [on_path, *sorted(pyenv.glob(f"{version}.*/bin/python"))]):
        # A shim of pyenv is there for every version that it has, and starts only those that are selected.
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def run(command: list, log: Path, **variables: str) -> None:
    """Run a command in the checkout, with its output at the end of a log.

    Raises:
        InstallationError: It failed.
    """
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        ended = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=os.environ | variables
        )
    if ended.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise InstallationError(f"{Path(command[0]).name} ended with {ended.returncode}: {last} (see {log})")


def choose(which: str, python: str, folder: Path, log: Path) -> Path:
    """The file with every package's version and hashes."""
    if which == "locked":
        return ROOT / "requirements/locked-pinned.txt"
    chosen, limits = folder / "chosen.txt", folder / "limits.txt"
    limits.write_text("" if which == "oldest" else f"torch=={which}\n")
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--python-version", python]
    command += ["--resolution", "lowest-direct" if which == "oldest" else "highest", "--constraint", limits]
    command += ["--only-binary", ":all:", *(f"--no-binary={name}" for name in SOURCES_ALONE)]
    command += [f"--extra={name}" for name in EXTRAS]
    run([*command, "--output-file", chosen, "pyproject.toml"], log)
    return chosen


def install(python: Path, version: str, which: str, folder: Path, log: Path) -> Path:
    """Make the environment and return its Python.

    uv unpacks while it downloads, which keeps the disk for one copy of torch; the rest is what users run.
    """
    cache = {"UV_CACHE_DIR": str(folder / "cache"), "PIP_NO_CACHE_DIR": "1", "TMPDIR": str(folder)}
    environment = folder / "env"
    run([python, "-m", "venv", "--clear", environment], log)
    locked = choose(which, version, folder, log)
    for file in ("requirements/locked-build.txt", locked):
        command = ["uv", "pip", "install", "--quiet", "--python", environment / "bin/python", "--require-hashes"]
        run([*command, "--no-build-isolation", "--requirements", file], log, **cache)
    run(["bash", "tools/setup_env.sh", environment], log, LOCKED=str(locked), BASE_PYTHON=str(python), **cache)
    return environment / "bin/python"


def versions(python: Path) -> dict[str, str]:
    """Of the packages in the table."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {SHOWN}}}))"
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True, text=True).stdout)


def run_tests(python: Path, arguments: argparse.Namespace, folder: Path, log: Path) -> dict:
    """Counts, seconds, and the names of the tests that failed."""
    report, start = folder / "results.xml", time.monotonic()
    command = [python, "-m", "pytest", *arguments.tests, "--numprocesses", str(arguments.workers)]
    command += ["--dist", "loadfile", "-p", "no:cacheprovider", f"--junitxml={report}"]
    try:
        run(command, log, TMPDIR=str(folder), PATH=f"{python.parent}:{os.environ['PATH']}")
    except InstallationError:
        if not report.exists():
            raise  # pytest itself did not start
    seconds = round(time.monotonic() - start)
    suite = ElementTree.parse(report).getroot()[0]
    failed = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = int(suite.get("skipped"))
    return {
        "passed": int(suite.get("tests")) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "seconds": seconds,
        "failures": [f"{case.get('classname')}.{case.get('name')}" for case in failed],
    }


def measure(version: str, which: str, arguments: argparse.Namespace) -> dict:
    """One row: a new environment, the tests in it, and the environment removed."""
    python = find_python(version)
    if python is None:
        return {"note": "not here"}
    folder = arguments.output / f"{version}-{which}"
    log = folder.with_suffix(f"{folder.suffix}.log")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log.unlink(missing_ok=True)
    try:
        inside = install(python, version, which, folder, log)
        return versions(inside) | run_tests(inside, arguments, folder, log)
    except InstallationError as error:
        return {"note": f"could not be installed: {error}"}
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


def table(rows: dict[str, dict]) -> str:
    """Rows as markdown, and what failed below."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    below: list[str] = []
    for key, row in rows.items():
        version, which, tests = json.loads(key)
        cells = [str(row.get(name, "")) for name in (*SHOWN, *COUNTS)]
        if "note" in row:
            cells = ["", "", "", "not run", "", "", ""]
            below.append(f"- Python {version}, {which}: {row['note']}")
        below += [f"- Python {version}, {which}: {name} failed" for name in row.get("failures", [])]
        lines.append(
            "| " + " | ".join([version, which if tests == ["tests"] else f"{which}: {' '.join(tests)}", *cells]) + " |"
        )
    return "\n".join([*lines, "", *below]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Run what has no row yet, print and write the table, and end with 1 where a row has no or failed tests."""
    arguments = parse_args(argv)
    if shutil.which("uv") is None:
        sys.exit("uv is not on the path; it is needed to install: pip install uv")
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    finished = arguments.output / "rows.json"
    rows = json.loads(finished.read_text()) if finished.exists() else {}
    for which in arguments.torch:
        for version in arguments.python:
            key = json.dumps([version, which, arguments.tests])
            if key not in rows or "note" in rows[key]:
                print(f"Python {version}, {which} ...", flush=True)
                rows[key] = measure(version, which, arguments)
                finished.write_text(json.dumps(rows, indent=1))
                (arguments.output / "table.md").write_text(table(rows))
    print(table(rows), end="")
    sys.exit(any("note" in row or row["failed"] for row in rows.values()))


if __name__ == "__main__":
    main()
