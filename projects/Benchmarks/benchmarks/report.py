"""The result of a benchmark: rows of a table, limits, and the machine."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tabulate import tabulate

from soma_det.utils.machine import count_cores, cpu_name

PACKAGES = (
    "torch", "torchvision", "timm", "peft", "numpy", "opencv-python", "pycocotools", "faster-coco-eval", "onnxruntime",
    "openvino",
)  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """A figure of a benchmark and the limit set for it."""

    what: str
    value: float
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure is within the limit."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass
class Report:
    """One benchmark.

    Attributes:
        title: what was measured.
        settings: all options.
        rows: column -> value, with the same columns in each row.
        limits: may be empty.
        notes: sentences below the table.
    """

    title: str
    settings: dict
    rows: list[dict] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table, in Markdown, with machine, versions, limits and notes."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        blocks = [f"{self.title}", f"{describe_machine()}\n{settings}", format_rows(self.rows)]
        if self.limits:
            blocks.append(format_rows([_limit_row(limit) for limit in self.limits]))
        return "\n\n".join(blocks + self.notes)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        limits = [{**asdict(limit), "met": limit.met} for limit in self.limits]
        content = {**asdict(self), "limits": limits, "machine": machine(), "versions": versions()}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def format_rows(rows: list[dict]) -> str:
    """A table in Markdown; numbers with four significant digits."""
    cells = [{key: _format(value) for key, value in row.items()} for row in rows]
    return tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True)


def machine() -> dict[str, str | int]:
    """CPU, cores, threads and GPU of this machine."""
    found = {"cpu": cpu_name(), "cores": count_cores(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that influence the figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_machine() -> str:
    """Machine and versions in two lines."""
    here = ", ".join(f"{value}" if key in ("cpu", "gpu") else f"{value} {key}" for key, value in machine().items())
    return f"{here}\n" + ", ".join(f"{name} {number}" for name, number in versions().items())


def _limit_row(limit: Limit) -> dict:
    sign = "<=" if limit.at_most else ">="
    return {"limit": limit.what, "measured": limit.value, "allowed": f"{sign} {limit.limit:g}", "met": limit.met}


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
