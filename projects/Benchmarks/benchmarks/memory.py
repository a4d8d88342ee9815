"""What a process holds in memory, as Linux counts it."""

import multiprocessing
from pathlib import Path


def allocated_mib(process: int | str = "self") -> float:
    """MiB of memory that belongs to no file, in use by a process; 0 where it has ended.

    Pages that a loader's workers share with the process that started them count in each. What a process holds alone
    would not do: it grows whenever one of them writes to such a page.
    """
    try:
        return _read(process, "RssAnon")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def workers_mib() -> float:
    """The same for the processes that this one has started by multiprocessing, such as a loader's workers, together."""
    return sum(allocated_mib(child.pid) for child in multiprocessing.active_children() if child.pid)


def peak_mib() -> float:
    """The most MiB of memory that this process has held; getrusage's may be that of the process that started it."""
    return _read("self", "VmHWM")


def _read(process: int | str, field: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found[field].split()[0]) / 1024 if field in found else 0.0
