"""The projects depend on soma_det and never the other way round, and the wheel has none of them."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "SynthDrive": {"make_synthdrive"},
    "Pretraining": {"pretrain_vit"},
    "AdapterComparison": {"compare_adapters", "plot_metric"},
    "Benchmarks": {"benchmark"},
    "ImageSelection": {"measure_selection"},
}
MAY_IMPORT = {"Pretraining": {"SynthDrive"}}
ADAPTERS_IMPORT = {"torch", "timm", "safetensors", "tqdm", "peft"}
MOST_LINES = {"soma_det": 10_600, "uda": 2_200}  # lines, of domain adaptation apart


def modules_of(project: str) -> set[str]:
    """Top-level modules and packages in the folder of a project."""
    folder = ROOT / "projects" / project
    return {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, imported module) of every absolute import below a folder, at any depth of the code."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{path} has a relative import"
                yield path, node.module


def importers(folder: Path, modules: set[str]) -> list[str]:
    """The imports below a folder whose top-level module is one of these."""
    return [
        f"{path.relative_to(ROOT)} imports {name}" for path, name in imports(folder) if name.split(".")[0] in modules
    ]


def test_every_project_has_a_readme_its_package_and_commands():
    for project, commands in PROJECTS.items():
        assert (ROOT / "projects" / project / "README.md").is_file()
        assert commands < modules_of(project) and len(modules_of(project)) == len(commands) + 1
        assert f"[{project}]({project}/README.md)" in (ROOT / "projects" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (ROOT / "projects").iterdir() if path.is_dir()} == set(PROJECTS)


@pytest.mark.parametrize("folder", ["soma_det", "tools"])
def test_the_product_imports_no_project(folder):
    assert not importers(ROOT / folder, set.union(*map(modules_of, PROJECTS)))


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_imports_no_other_one_but_pretraining_the_generator(project):
    others = set(PROJECTS) - {project} - MAY_IMPORT.get(project, set())
    assert not importers(ROOT / "projects" / project, set.union(*map(modules_of, others)))


def test_soma_det_stays_small():
    lines = dict.fromkeys(MOST_LINES, 0)
    for path in (ROOT / "soma_det").rglob("*.py"):
        lines["uda" if "uda" in path.parts else "soma_det"] += len(path.read_text(encoding="utf-8").splitlines())
    assert all(lines[part] <= MOST_LINES[part] for part in lines), lines


def test_the_wheel_takes_soma_det_alone_and_soma_det_holds_nothing_but_code():
    tool = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]
    packages = find_packages(str(ROOT), **tool["packages"]["find"])
    assert packages and {package.split(".")[0] for package in packages} == {"soma_det"}
    files = [path for path in (ROOT / "soma_det").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.name for path in files if path.suffix != ".py"} <= {"py.typed"}


@pytest.mark.slow
def test_a_built_wheel_holds_soma_det_alone(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "datasets", "output", "build"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(source)]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"soma_det"}
    assert "soma_det/py.typed" in names


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(f"{project}/{command}.py", marks=pytest.mark.slow if project != "Pretraining" else ())
        for project, commands in PROJECTS.items()
        for command in sorted(commands)
    ],
)
def test_a_command_runs_from_any_folder(script, tmp_path):
    """In a new process, which knows soma_det and not the folders of the projects."""
    command = [sys.executable, str(ROOT / "projects" / script), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python projects/{script}" in done.stdout


def test_adapters_need_no_detectron2_and_nothing_else_of_soma_det():
    allowed = ADAPTERS_IMPORT | set(sys.stdlib_module_names)
    foreign = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in imports(ROOT / "soma_det" / "adapters")
        if name.split(".")[0] not in allowed and not f"{name}.".startswith("soma_det.adapters.")
    ]
    assert not foreign
