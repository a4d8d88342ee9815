"""What is installed is what was written down: the lock's hashes, and Detectron2's sources."""

import re
import shutil
from importlib import metadata
from pathlib import Path

import check_detectron2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LISTS = ("build", "pinned", "docs", "sbom")
PYTHONS = ("3.10.13", "3.11.9", "3.12.1")


def pins(name: str, python: str) -> dict[str, str]:
    """{package: version} of a list of requirements, for a version of Python on Linux."""
    machine = {"python_version": python.rsplit(".", 1)[0], "python_full_version": python, "sys_platform": "linux"}
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = [Requirement(line.rstrip("\\")) for line in lines if re.match(r"\w", line)]
    here = [r for r in found if r.marker is None or r.marker.evaluate(machine)]
    assert len(here) == len({canonicalize_name(r.name) for r in here}), "a package is named twice"
    return {canonicalize_name(r.name): str(r.specifier) for r in here}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LISTS)
def test_the_lock_has_every_pin_of_its_list_for_each_python(name, python):
    listed = pins(name, python)
    assert listed and listed.items() <= pins(f"locked-{name}", python).items(), "run tools/lock.sh"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["docs", "sbom"])
def test_no_lock_asks_for_another_version_than_the_environment_has(name, python):
    environment, added = pins("locked-pinned", python), pins(f"locked-{name}", python)
    if name == "docs":  # the SBOM's tools have an environment of their own
        assert all(environment.get(package, version) == version for package, version in added.items())
    assert all(version.startswith("==") for version in added.values())


@pytest.mark.parametrize("name", LISTS)
def test_every_package_in_the_lock_has_hashes(name):
    text = (ROOT / "requirements" / f"locked-{name}.txt").read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert packages and all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", line) for line in packages)


def test_the_table_of_licenses_has_every_locked_package_in_its_version():
    rows = re.findall(r"^\| (\S+) \| (\S+) \| .", (ROOT / "docs" / "licenses.md").read_text(), re.M)
    table = {canonicalize_name(name): f"=={version}" for name, version in rows}
    assert pins("locked-pinned", "3.11.9").items() <= table.items(), "run make sbom"


@pytest.fixture
def wheel(tmp_path):
    """A copy of the installed Detectron2's Python files and metadata."""
    try:
        installed = metadata.distribution(check_detectron2.NAME)
    except metadata.PackageNotFoundError:
        pytest.skip("another Detectron2 is installed: it is used as it is")
    for file in installed.files:
        if file.suffix == ".py" or ".dist-info" in file.parts[0]:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), tmp_path / file)
    return next(iter(metadata.distributions(path=[str(tmp_path)])))


def test_the_installed_detectron2_is_the_recorded_one(wheel):
    assert check_detectron2.differences(metadata.distribution(check_detectron2.NAME)) == []
    assert check_detectron2.differences(wheel) == [] and len(check_detectron2.sources(wheel)) > 200


def test_a_changed_a_missing_and_an_added_file_of_detectron2_are_named(wheel, tmp_path):
    package = tmp_path / "detectron2"
    package.joinpath("config", "config.py").open("a").write("\n")
    package.joinpath("structures", "boxes.py").unlink()
    package.joinpath("more.py").write_text("")
    assert check_detectron2.differences(wheel) == [
        "detectron2/config/config.py was changed",
        "detectron2/more.py was added",
        "detectron2/structures/boxes.py is missing",
    ]


def test_a_list_of_files_that_follows_a_change_is_found_too(wheel, tmp_path):
    changed = tmp_path / "detectron2" / "config" / "config.py"
    before = check_detectron2.encoded(changed.read_bytes())
    changed.write_text("evil = 1\n")
    record = next(tmp_path.glob("*.dist-info/RECORD"))
    record.write_text(record.read_text().replace(before, check_detectron2.encoded(changed.read_bytes())))
    assert check_detectron2.differences(wheel) == ["RECORD, pip's list of the files, differs"]
